#!/usr/bin/env bash
# Makes .venv with the dependencies that pyproject.toml lists, and compiles the operator.
# Safe to run again: it does only what is missing.
#   scripts/setup.sh                what running needs
#   scripts/setup.sh --pretrained   also ImageNet weights of small backbones, for machines that cannot download them
#   scripts/setup.sh --test         also what the tests need
# PYTHON names the interpreter to use (3.10 or later; default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

extras=()
for argument in "$@"; do
  case "$argument" in
    --test | --pretrained) extras+=("${argument#--}") ;;
    *) echo "error: unknown argument '$argument'; give --test, --pretrained, or nothing" >&2; exit 1 ;;
  esac
done

if [[ ! -x .venv/bin/python ]]; then
  python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is missing or older than 3.10; set PYTHON to a newer one" >&2
    exit 1
  fi
  echo "creating .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

# Only the dependencies are installed, no package of this project's own: it runs from this folder.
wanted=".venv/requirements"
for extra in "${extras[@]+"${extras[@]}"}"; do
  wanted+="-$extra"
done
wanted+=".txt"
.venv/bin/python - "${extras[@]+"${extras[@]}"}" > "$wanted.new" <<'PYTHON'
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [package for extra in sys.argv[1:] for package in project["optional-dependencies"][extra]]
print(*project["dependencies"], *extras, sep="\n")
PYTHON

if ! cmp -s "$wanted.new" "$wanted"; then
  echo "installing the dependencies (torch's CUDA build is about 5 GB; it runs on CPUs too)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$wanted.new"
  mv "$wanted.new" "$wanted"
fi
rm -f "$wanted.new"

# A GPU without a CUDA compiler: the one of Python's packages, of torch's own CUDA version, needs no toolkit.
read -r -a nvcc <<< "$(.venv/bin/python -c 'from ops.compilers import missing_packages; print(*missing_packages())')"
if [[ ${#nvcc[@]} -gt 0 ]]; then
  echo "installing the CUDA compiler: ${nvcc[*]}"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${nvcc[@]}" || true
fi

# Without a compiler everything runs all the same, on the slower reference; the build has said what is missing.
if ! .venv/bin/python -m ops.build; then
  echo "the operator is not built: going on with its PyTorch reference" >&2
fi

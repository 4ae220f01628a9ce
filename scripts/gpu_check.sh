#!/usr/bin/env bash
# Builds the operator on a machine with a GPU, tests it, looks for bad memory accesses, measures it and training steps.
#   scripts/gpu_check.sh [FOLDER [STEP...]]     results go to FOLDER (default: runs/gpu_check); some steps, or all
# PYTHON names the interpreter (default: .venv/bin/python if there is one, else python3); it needs torch, and for the
# tests pytest, hypothesis and transformers. Every step runs, whatever became of those before; the exit code is 0 if none
# failed.
set -uo pipefail
cd "$(dirname "$0")/.."
folder="${1:-runs/gpu_check}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
asked=" ${*:2} "  # names of steps
python="${PYTHON:-}"
if [[ -z "$python" ]]; then
  python=python3
  [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
summary="$folder/summary.txt"
: > "$summary"
failed=0

step() { # NAME SECONDS COMMAND...: run with a limit, log to FOLDER/NAME.log, note the verdict
  local name="$1" limit="$2" started verdict=ok
  shift 2
  if [[ "$asked" != "  " && "$asked" != *" $name "* ]]; then return; fi
  started=$(date +%s)
  echo "== $name: $*"
  if ! timeout "$limit" "$@" > "$folder/$name.log" 2>&1; then
    verdict="FAILED, see $name.log"
    failed=1
  fi
  tail -n 6 "$folder/$name.log"
  echo "$name: $verdict ($(($(date +%s) - started)) s)" | tee -a "$summary"
}

step machine 30 nvidia-smi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: torch of $python sees no GPU here: set PYTHON to one that does" | tee -a "$summary" >&2
  exit 1
fi
step build 120 "$python" -m ops.build --force --verbose
step check 45 "$python" -m ops.check
# Measurements first, so that they have the machine for themselves also where the later steps run beside something else.
step bench 120 "$python" scripts/bench/op.py --device cuda --dtype float32 bfloat16 --seconds 0.5 \
  --json "$folder/bench.json" --plot "$folder/bench.png"
train=("$python" scripts/bench/train.py --device cuda --batch 8 --size 800 1066)
step train 120 "${train[@]}" --precision fp32 bf16 fp16 --naive --json "$folder/train.json"
step train_checkpointed 60 "${train[@]}" --precision bf16 --checkpoint-activations
step profile 60 "$python" main.py profile --config configs/base.yaml --device cuda --precision bf16
if "$python" -c 'import transformers' 2> /dev/null; then
  step model 45 "$python" scripts/bench/model.py --device cuda --repeats 10
fi
step deform 60 "$python" scripts/bench/deform.py --device cuda
step train_dcn 90 "${train[@]}" --precision bf16 --repeats 3 -- --model.backbone.dcn v2 --loss.mimic_weight 0.1
step shift 60 "$python" scripts/bench/shift.py --device cuda
step train_compiled 240 "${train[@]}" --precision bf16 --compile --json "$folder/train_compiled.json"
if "$python" -c 'import pytest, hypothesis' 2> /dev/null; then
  step tests 180 "$python" -m pytest -q -p no:cacheprovider tests/ops/test_cuda_backend.py tests/ops/test_library.py
else
  echo "tests: skipped, pytest or hypothesis is missing" | tee -a "$summary"
fi
sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | head -n 1 || true)"
if [[ -n "$sanitizer" ]]; then
  for tool in memcheck racecheck; do
    step "sanitizer_$tool" 90 "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" -m ops.check
  done
else
  echo "sanitizer: skipped, there is no compute-sanitizer" | tee -a "$summary"
fi
echo
cat "$summary"
exit "$failed"

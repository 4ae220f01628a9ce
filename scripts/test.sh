#!/usr/bin/env bash
# Installs what is missing, checks the style and runs the tests.
#   scripts/test.sh              the tests, without the slow ones
#   scripts/test.sh --slow       all tests
#   scripts/test.sh tests/ops    any arguments of pytest
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --test

marks=(-m "not slow")
if [[ "${1:-}" == "--slow" ]]; then
  marks=()
  shift
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# Nothing is fetched from a hub in the tests; saying so turns an attempt into an error instead of a wait.
# Two workers; the tests of one file share its fixtures and stay in one of them.
HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10 \
  "${marks[@]}" "$@"

#!/usr/bin/env bash
# From nothing to boxes on pictures: installs, generates shapes, trains a small detector, evaluates it, draws.
# About 10 minutes on two CPU cores, most of it installing and training. Options are passed on to training:
#   scripts/quickstart.sh --train.epochs 4
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
run=runs/quickstart

.venv/bin/python -m datasets.shapes --output data/shapes
rm -rf "$run"  # of an earlier quickstart: training does not overwrite a run
.venv/bin/python main.py train --config configs/quickstart.yaml "$@" --train.output "$run"
.venv/bin/python main.py predict --checkpoint "$run/best.pth" --input data/shapes/val2017 --output "$run/pictures" \
  --threshold 0.35
echo
echo "The best checkpoint on the held-out shapes:"
.venv/bin/python main.py eval --checkpoint "$run/best.pth" --output "$run/eval"
echo
echo "pictures with boxes: $run/pictures"
echo "next: .venv/bin/python main.py train --help"

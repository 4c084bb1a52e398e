#!/bin/sh
# Compares SoFlow, MeanFlow and JumpFlow on CIFAR-10, with 35 seconds of training each. Meant to take
# about four minutes on one GPU. Writes benchmarks/results/gpu_quality.json and docs/gpu.md after
# each objective, so an interrupted script has results. Options: --help.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_quality.py "$@"

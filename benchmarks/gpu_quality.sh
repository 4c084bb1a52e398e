#!/bin/sh
# Compares SoFlow, JumpFlow and MeanFlow on CIFAR-10, with 35 seconds of training each: about four
# minutes on one GPU. Writes benchmarks/results/gpu_quality.json and docs/gpu.md. Options: --help.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_quality.py "$@"

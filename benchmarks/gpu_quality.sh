#!/bin/sh
# SoFlow and MeanFlow on CIFAR-10, 100 seconds of training each: under four minutes on one GPU. Writes
# benchmarks/results/gpu_quality.json and docs/gpu.md. Options: --help.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_quality.py "$@"

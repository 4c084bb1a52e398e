#!/bin/sh
# SoFlow, JumpFlow and MeanFlow on CIFAR-10, 35 seconds of training each: planned for four minutes on one
# GPU. Writes benchmarks/results/gpu_quality.json and docs/gpu.md. Options: --help.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_quality.py "$@"

#!/bin/sh
# Measures the cost of a training step of the paper's networks: under four minutes on one GPU. Writes
# benchmarks/results/gpu_cost.json and docs/gpu.md. Options: --help.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_cost.py "$@"

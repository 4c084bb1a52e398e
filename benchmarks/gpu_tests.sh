#!/bin/sh
# Runs the tests in tests/gpu: under four minutes on one GPU. Writes
# benchmarks/results/gpu_tests.json and docs/gpu.md. Options: --help.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_tests.py "$@"

#!/bin/sh
# The cost table at the paper's sizes, in under ten minutes on one GPU: writes docs/gpu.md and
# benchmarks/results/gpu.json.
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/cost_table.py --minutes "${MINUTES:-9}" "$@"

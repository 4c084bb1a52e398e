"""The device of tests that run on a GPU, too: benchmarks/gpu_tests.sh sets it."""

import os

import torch

DEVICE = torch.device(os.environ.get("SOFLOW_TEST_DEVICE", "cpu"))
ON_GPU = DEVICE.type == "cuda"

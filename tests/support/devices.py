"""The device of tests that can also run on a GPU. benchmarks/gpu_tests.sh sets it."""

import os

import torch

DEVICE = torch.device(os.environ.get("SOFLOW_TEST_DEVICE", "cpu"))
ON_GPU = DEVICE.type == "cuda"

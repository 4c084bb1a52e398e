"""Resolves precision=auto and compile=auto for the machine that trains."""

import os
import time
from functools import cache
from inspect import signature
from shutil import which
from timeit import timeit

import torch
from torch.nn import functional
from torch.utils._triton import has_triton

from soflow.assemble import make_network
from soflow.config import Config
from soflow.config.own import OWN
from soflow.training.activations import repeated_blocks

#: A CPU trains in bfloat16 if matrix products are faster by at least this factor.
WORTHWHILE = 1.3
#: Compilation takes minutes on a GPU. It pays off after about this number of steps: with DiT-B/2,
#: it saves 15 of 91 ms per step (docs/gpu.md).
COMPILE_STEPS = 5000
#: The timed matrix product: number of rows, largest width of the layer, seconds of measurement.
ROWS, LARGEST, SECONDS = 512, 768, 0.2


def resolve(
    config: Config, device: torch.device, started: Config | None = None
) -> tuple[Config, str]:
    """Replaces "auto" for `precision` and `compile` by a choice for this machine.

    Args:
        config: The configuration to train.
        device: The device to train on.
        started: The configuration of the resumed run. Its choices are kept.

    Returns:
        The configuration, and a note about the choice. The note is empty if nothing was chosen.
    """
    automatic = [name for name in ("precision", "compile") if getattr(config, name) == "auto"]
    if started is not None:
        kept = {name: getattr(started, name) for name in automatic}
        config = config.model_copy(update=kept)
        automatic = [name for name in automatic if kept[name] == "auto"]  # in an imported run
    chosen: dict[str, object] = {}
    notes = []
    if "precision" in automatic:
        chosen["precision"], reason = choose_precision(config, device)
        notes.append(f"precision={chosen['precision']} ({reason})")
    if "compile" in automatic:
        chosen["compile"] = choose_compile(config, device)
        notes.append(f"compile={str(chosen['compile']).lower()}")
    note = f"chosen for this machine: {', '.join(notes)}" if notes else ""
    return config.model_copy(update=chosen), note


def choose_precision(config: Config, device: torch.device) -> tuple[str, str]:
    """The precision of forward and backward passes, and the reason for the choice."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16-tf32", f"{name} supports bfloat16"
        return "fp32", f"{name} does not support bfloat16"
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return "fp32", "this processor does not support bfloat16"
    ratio = bfloat16_speed(min(LARGEST, getattr(config.network, "width", LARGEST)))
    reason = f"bfloat16 products run at {ratio:.2g} times the speed of float32 here"
    return ("bf16" if ratio >= WORTHWHILE else "fp32"), reason


def choose_compile(config: Config, device: torch.device) -> bool:
    """Whether compiling the network's blocks is possible and saves time."""
    if device.type != "cuda" or config.train.steps < COMPILE_STEPS or not can_compile():
        return False
    if config.of_objective("forward_derivative"):
        # Compiled blocks have no forward-mode derivative: the objective must compile the pass.
        return "compile" in signature(config.objective.component).parameters
    if config.network.name == OWN:
        return False
    with torch.device("meta"):
        return bool(repeated_blocks(make_network(config)))


def can_compile() -> bool:
    """Whether Triton and a C compiler, which Triton needs, are installed."""
    return has_triton() and any(map(which, (os.environ.get("CC", "cc"), "gcc", "clang")))


@cache
def bfloat16_speed(width: int) -> float:
    """The speed of a linear layer (width -> 4 width) in bfloat16, relative to float32, on a CPU.

    Alternates between both and takes the fastest repetition of each, because other processes may
    slow down some of them.
    """
    x, weight = torch.randn(ROWS, width), torch.randn(4 * width, width)
    low = weight.bfloat16()
    float32 = bfloat16 = float("inf")
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        float32 = min(float32, timeit(lambda: functional.linear(x, weight), number=1))
        bfloat16 = min(bfloat16, timeit(lambda: functional.linear(x.bfloat16(), low), number=1))
    return float32 / bfloat16

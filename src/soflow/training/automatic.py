"""precision=auto and compile=auto: the settings that suit the machine that trains."""

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

#: bfloat16 is used on a CPU whose products are so many times faster in it.
WORTHWHILE = 1.3
#: Steps after which a compiled network has saved the minutes of its compilation on a GPU: at
#: DiT-B/2 it saves 15 of 91 ms per step (docs/gpu.md).
COMPILE_STEPS = 5000
#: The product that is timed: its rows, the width of its layer at most, and for how long.
ROWS, LARGEST, SECONDS = 512, 768, 0.2


def resolve(
    config: Config, device: torch.device, begun: Config | None = None
) -> tuple[Config, str]:
    """The configuration with a definite `precision` and `compile`.

    Args:
        config: What is to be trained.
        device: Where.
        begun: The configuration that a run was begun with, whose choices are kept.

    Returns:
        The configuration, and a sentence that says what was chosen; empty if nothing was.
    """
    automatic = [name for name in ("precision", "compile") if getattr(config, name) == "auto"]
    if begun is not None:
        kept = {name: getattr(begun, name) for name in automatic}
        config = config.model_copy(update=kept)
        automatic = [name for name in automatic if kept[name] == "auto"]  # of an imported run
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
    """The precision of the passes, and why."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16-tf32", f"{name} computes bfloat16"
        return "fp32", f"{name} computes no bfloat16"
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return "fp32", "this processor computes no bfloat16"
    ratio = bfloat16_speed(min(LARGEST, getattr(config.network, "width", LARGEST)))
    reason = f"bfloat16 products have {ratio:.2g} times the speed of float32 here"
    return ("bf16" if ratio >= WORTHWHILE else "fp32"), reason


def choose_compile(config: Config, device: torch.device) -> bool:
    """Whether compiling the network's blocks is possible, and pays."""
    if device.type != "cuda" or config.train.steps < COMPILE_STEPS or not can_compile():
        return False
    if config.of_objective("forward_derivative"):
        # Blocks compiled one by one have no such derivative: the objective must compile its own.
        return "compile" in signature(config.objective.component).parameters
    if config.network.name == OWN:
        return False
    with torch.device("meta"):
        return bool(repeated_blocks(make_network(config)))


def can_compile() -> bool:
    """Whether Triton is there, and the C compiler that it needs."""
    return has_triton() and any(map(which, (os.environ.get("CC", "cc"), "gcc", "clang")))


@cache
def bfloat16_speed(width: int) -> float:
    """The speed of a linear layer (width -> 4 width) in bfloat16, relative to float32, on a CPU.

    The fastest of many repetitions, in turn, since other processes may disturb some of them.
    """
    x, weight = torch.randn(ROWS, width), torch.randn(4 * width, width)
    low = weight.bfloat16()
    float32 = bfloat16 = float("inf")
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        float32 = min(float32, timeit(lambda: functional.linear(x, weight), number=1))
        bfloat16 = min(bfloat16, timeit(lambda: functional.linear(x.bfloat16(), low), number=1))
    return float32 / bfloat16

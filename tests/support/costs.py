"""Replaces measurements of step costs by known values."""

from contextlib import contextmanager

import pytest

from soflow.comparison import cost as costs
from soflow.comparison.measure import Measurement
from soflow.evaluation import evaluate

#: Seconds per step, by objective.
SECONDS = {
    "soflow": 3.0,
    "jump_flow": 3.3,
    "mean_flow": 6.0,
    "imf": 7.0,
    "alpha_flow": 2.5,
    "shortcut": 4.0,
    "consistency": 1.5,
    "flow_matching": 2.0,
}
BYTES = {
    "soflow": 2**28,
    "jump_flow": 2**28,
    "mean_flow": 2**29,
    "imf": 2**29,
    "alpha_flow": 2**29,
    "shortcut": 2**28,
    "consistency": 2**27,
    "flow_matching": 2**28,
}


def measured(name):
    return Measurement(
        seconds_per_step=SECONDS[name],
        peak_bytes=BYTES[name],
        flops_per_sample=1e6,
        forward_flops_per_sample=1e5,
        parameters=100,
        peaks={"float32": 1e9},
        flops_by_kind={"float32": 1e6},
        one_step_samples_per_second=1e3,
        bare_forward_ratio=1.0,
        device="cpu",
    )


@contextmanager
def costs_without_measuring():
    """Replaces `bench` by known costs. Yields the list of objectives it was called with."""
    asked = []

    def bench(configs, rounds, progress, seconds):
        asked.append(list(configs))
        return {
            name: [measured(config.objective.name)] * rounds for name, config in configs.items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "bench", bench)
        # Fewer samples for timing and diagnostics, which these tests do not check.
        patch.setattr(evaluate, "TIMED_BATCH", 5)
        patch.setattr(evaluate, "DIAGNOSTIC_POINTS", 10)
        patch.setattr(evaluate, "HEUN_STEPS", 2)
        yield asked

"""The example runs with small settings."""

import math
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrained_to_one_step.py"


def test_a_pretrained_network_is_trained_to_one_step():
    main = runpy.run_path(str(EXAMPLE))["main"]
    found = main(pretraining=2, steps=2, batch_size=8, num=20)
    assert len(found) == 4
    assert all(math.isfinite(distance) for distance in found.values())

"""The example runs with small settings."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "image_to_image.py"


def test_half_digits_are_completed(tmp_path):
    main = runpy.run_path(str(EXAMPLE))["main"]
    found = main(tmp_path, steps=2)
    assert found["real"] > 0.9
    assert 0 <= found["recognized"] <= 1
    assert (tmp_path / "pairs.png").is_file()

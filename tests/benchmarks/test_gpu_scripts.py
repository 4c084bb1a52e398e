"""The GPU scripts run on a CPU with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.small_data import pixels, write_parquet

ROOT = Path(__file__).parents[2]
TINY = ["network.width=32", "network.depth=1", "network.heads=2", "train.batch_size=8"]

pytestmark = pytest.mark.processes


def run(script, out, *arguments):
    """Runs a script on the CPU. Returns its output, its results and the page."""
    command = ["sh", str(ROOT / "benchmarks" / f"{script}.sh"), "--on-cpu", "--out", str(out)]
    environment = {**os.environ, "PYTHON": sys.executable, "SOFLOW_REFERENCE_CASES": ""}
    found = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr + found.stdout
    results = json.loads((out / f"{script}.json").read_text())
    return found.stdout, results, (out / "gpu.md").read_text()


def test_the_cost_of_the_first_configurations(tmp_path):
    shown, results, page = run("gpu_cost", tmp_path, "--only", "2", *TINY)
    assert [row["variant"] for row in results["rows"]] == ["reference", "defaults"]
    assert results["missing"] == []
    assert "imagenet256-b2, soflow, defaults" in shown
    assert "| b2 | 8 | soflow | reference |" in page


def test_remaining_configurations_are_listed_when_time_is_up(tmp_path):
    _, results, page = run("gpu_cost", tmp_path, "--only", "2", "--minutes", "0", *TINY)
    assert results["rows"] == []
    assert len(results["missing"]) == 2
    assert "Not measured: imagenet256-b2, soflow, reference" in page


def test_the_tests_for_a_gpu(tmp_path):
    _, results, page = run("gpu_tests", tmp_path, "-k", "quotient or precision")
    assert set(results["outcomes"].values()) == {"passed"}
    assert results["figures"]["relative error of the quotient, fp32"] < 1e-3
    assert "4 passed, 0 failed, 0 skipped" in page


class Means(torch.nn.Module):
    """Mean colors of the quarters of an image: (B, 3, H, H) -> (B, 12)."""

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def test_the_quality_of_three_objectives(tmp_path):
    for split, count in (("train", 64), ("test", 40)):
        write_parquet(tmp_path / "data", pixels(count, (32, 32, 3)), split)
    torch.jit.script(Means()).save(str(tmp_path / "features.pt"))
    out = tmp_path / "out"
    _, results, page = run(
        *("gpu_quality", out, "--data", tmp_path / "data", "--features", tmp_path / "features.pt"),
        *("--seconds", "0.3", *TINY, "evaluate.num=40", "optimizer.warmup=0"),
        *("data.num_classes=2", "network.patch=8"),
    )
    compared = results["compared"]
    assert list(compared["objectives"]) == ["soflow", "mean_flow", "jump_flow"]
    assert compared["objectives"]["soflow"]["steps"] >= 1
    assert not any("path" in override for override in compared["overrides"])
    for name in ("plots", "samples"):
        assert (out / f"gpu_quality-{name}.png").is_file()
        assert f"results/gpu_quality-{name}.png" in page

"""Counted operations against a count by hand, and the command as a stranger runs it."""

import json
import subprocess
import sys

import pytest
import torch

from soflow.cli import main
from soflow.comparison.measure import count_flops
from soflow.config import read_recipe
from support.settings import TINY_DIT


def forward_by_hand(tokens, patch_values, width, depth):
    """Two operations a multiply-add of every matrix product of a DiT: blocks, attention, modulations, embeddings, ends."""
    block = 2 * tokens * (3 + 1 + 4 + 4) * width**2 + 2 * 2 * tokens**2 * width + 2 * 6 * width**2
    times = 2 * 2 * (256 * width + width**2)
    ends = 2 * 2 * tokens * patch_values * width + 2 * 2 * width**2
    return depth * block + times + ends


def test_the_operations_of_a_forward_pass_and_of_methods():
    """Flow matching without guidance is a forward pass and a backward of twice as much, less the first layer's input."""
    by_hand = forward_by_hand(tokens=4, patch_values=16, width=32, depth=1)
    counted = {}
    for name in ("flow_matching", "consistency", "soflow", "mean_flow"):
        unguided = ["objective.guidance.scale=1"] if name != "consistency" else []
        counted[name], forward = count_flops(
            read_recipe("digits", [*TINY_DIT, f"objective.name={name}", *unguided])
        )
        assert forward == pytest.approx(by_hand, rel=1e-6)
    assert counted["flow_matching"] == pytest.approx(3 * by_hand, rel=0.1)
    assert counted["consistency"] - counted["flow_matching"] == pytest.approx(
        by_hand
    )  # one pass without gradient more
    assert counted["soflow"] - counted["flow_matching"] == pytest.approx(
        0.25 * by_hand
    )  # for a quarter of the batch
    assert counted["mean_flow"] > 1.5 * counted["flow_matching"]


def test_the_command_measures_and_shows(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [
        "bench",
        "digits",
        *TINY_DIT,
        "train.batch_size=16",
        "--objectives",
        "mean_flow",
        "--rounds",
        "1",
    ]
    assert main.run([*arguments, "--out", str(tmp_path / "bench.json")]) == 0
    shown = capfd.readouterr().out
    for word in ("mean_flow", "MFLOP/sample", "one-step sampling"):
        assert word in shown
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures.keys() == {"mean_flow"}
    for (one,) in figures.values():
        assert 0 < one["seconds_per_step"] < 10
        assert one["peak_bytes"] > 50 * 2**20
        assert (
            0
            < one["flops_per_sample"] * 16 / one["seconds_per_step"]
            < one["peak_flops_per_second"]
        )


def test_the_peak_is_that_of_the_measuring_process_whatever_started_it():
    """Linux hands the largest size of a process down to what it starts."""
    ballast = torch.ones(200 * 2**20)  # 800 MiB
    code = "import torch; from soflow.comparison.measure import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 * 2**20 < int(told.stdout) < 700 * 2**20
    del ballast


@pytest.mark.slow
def test_on_a_gpu_soflow_is_measured_with_plain_attention_too(capfd, monkeypatch):
    """This process believes in a GPU; the processes that measure have none, and measure all the same."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    arguments = [
        "bench",
        "digits",
        *TINY_DIT,
        "train.batch_size=16",
        "--objectives",
        "soflow",
        "--rounds",
        "1",
    ]
    assert main.run(arguments) == 0
    assert "soflow, plain attention" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--objectives", "meanflow"], "mean_flow"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--out", "nowhere/x.json"], "--out"),
        (["network.patch=3"], "soflow: DiT: size 8 must be a multiple"),
    ],
)
def test_wrong_use_is_one_line(arguments, word, capfd):
    assert main.run(["bench", "digits", *arguments]) in (1, 2)
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert word in lines[0]

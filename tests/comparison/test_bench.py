"""Counted operations compared with a count by hand, and the bench command."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch

from soflow.cli import main
from soflow.comparison.bench import PROCESSES, Measurements, bench, groups
from soflow.comparison.cost import costs_of
from soflow.comparison.counting import count, with_default_sizes
from soflow.comparison.measure import measure
from soflow.config import read_objectives, read_recipe
from soflow.errors import RunError
from soflow.objectives import OBJECTIVES
from soflow.objectives.flow_matching import FlowMatching
from soflow.training.automatic import resolve
from support.costs import costs_without_measuring
from support.settings import TINY_DIT

SMALL = [*TINY_DIT, "train.batch_size=16"]


def forward_by_hand(tokens, patch_values, width, depth):
    """The FLOPs of a DiT: two per multiplication in each matrix product."""
    block = 2 * tokens * (3 + 1 + 4 + 4) * width**2 + 2 * 2 * tokens**2 * width + 2 * 6 * width**2
    times = 2 * 2 * (256 * width + width**2)
    ends = 2 * 2 * tokens * patch_values * width + 2 * 2 * width**2
    return depth * block + times + ends


def test_the_operations_of_a_forward_pass_and_of_objectives():
    """Unguided flow matching costs a forward pass, and twice as much for the backward pass."""
    by_hand = forward_by_hand(tokens=4, patch_values=16, width=32, depth=1)
    counted = {}
    for name in ("flow_matching", "consistency", "soflow", "mean_flow"):
        unguided = ["objective.guidance.scale=1"] if name != "consistency" else []
        counts = count(read_recipe("digits", [*TINY_DIT, f"objective.name={name}", *unguided]))
        assert counts.forward_flops_per_sample == pytest.approx(by_hand, rel=1e-6)
        counted[name] = counts.flops_per_sample
    flow_matching = counted["flow_matching"]
    assert flow_matching == pytest.approx(3 * by_hand, rel=0.1)  # the input needs no gradient
    # An extra pass without gradient, for the whole batch or for a quarter of it.
    assert counted["consistency"] - flow_matching == pytest.approx(by_hand)
    assert counted["soflow"] - flow_matching == pytest.approx(0.25 * by_hand)
    assert counted["mean_flow"] > 1.5 * flow_matching


@pytest.mark.parametrize("objective", ["soflow", "mean_flow"])
def test_signals_and_rectangles_cost_what_a_square_of_the_same_patches_costs(objective):
    """All shapes have 16 patches of 16 values."""
    counts = [
        count(read_recipe("digits", [*TINY_DIT, f"objective.name={objective}", shape]))
        for shape in ("data.shape=[1,16,16]", "data.shape=[1,4,64]", "data.shape=[4,64]")
    ]
    assert counts[0] == counts[1] == counts[2]


MODULE = """
from dataclasses import dataclass
from soflow.objectives import OBJECTIVES
from soflow.objectives.flow_matching import FlowMatching

@OBJECTIVES.register("mine")
@dataclass(frozen=True)
class Mine(FlowMatching):
    pass
"""


@pytest.fixture
def my_objective(tmp_path, monkeypatch):
    """Registers an objective in a module outside the package."""
    (tmp_path / "my_objective.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(OBJECTIVES, "entries", dict(OBJECTIVES.entries))
    import_module("my_objective")


@pytest.mark.processes
def test_the_command_measures_and_prints_costs(tmp_path, capfd, monkeypatch, my_objective):
    """The measuring process imports the module that registers the objective."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "bench.json"
    options = ["--objectives", "mine", "--rounds", "1", "--out", str(file)]
    assert main.run(["bench", "digits", *SMALL, *options]) == 0
    shown = capfd.readouterr().out
    for word in ("mine", "MFLOP/sample", "one-step sampling"):
        assert word in shown
    measured = Measurements.read(file).measured
    assert measured.keys() == {"mine"}
    (one,) = measured["mine"]
    assert 0 < one.seconds_per_step < 10
    assert one.peak_bytes > 50 * 2**20
    assert one.parameters > 1000
    assert one.peaks.keys() == one.flops_by_kind.keys() == {"float32"}
    assert 0 < one.share_of_peak(16) < 1


def test_steps_in_the_middle_of_training_are_measured(monkeypatch):
    """The cost of alpha-Flow changes during training."""
    seen, loss = set(), FlowMatching.__call__

    def recording(self, model, batch, draws, progress):
        seen.add(progress)
        return loss(self, model, batch, draws, progress)

    monkeypatch.setattr(FlowMatching, "__call__", recording)
    options = [*SMALL, "objective.name=flow_matching", "optimizer.warmup=1", "train.steps=2"]
    config = resolve(read_recipe("digits", options), torch.device("cpu"))[0]
    measure(with_default_sizes(config), least_seconds=0.01)
    assert seen == {0.5}


def test_few_processes_start_at_once():
    names = [str(i) for i in range(2 * PROCESSES + 1)]
    found = groups(names)
    assert [name for group in found for name in group] == names
    assert [len(group) for group in found] == [PROCESSES, PROCESSES, 1]


def test_a_failed_measurement_is_named():
    program = ("-c", "raise SystemExit('no memory')")
    config = read_recipe("digits", SMALL)
    with pytest.raises(RunError, match=r"measurement of mine.*no memory"):
        bench({"mine": config}, 1, {"mine": program})


@pytest.mark.processes
def test_the_peak_is_of_the_measuring_process_alone():
    """On Linux, a child process inherits the peak memory of its parent."""
    ballast = torch.ones(200 * 2**20)  # 800 MiB
    code = (
        "import torch; from soflow.comparison.measure import peak_bytes;"
        "print(peak_bytes(torch.device('cpu')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 * 2**20 < int(shown.stdout) < 700 * 2**20
    del ballast


def test_on_a_gpu_soflow_is_also_measured_with_plain_attention(capfd, monkeypatch):
    """The test fakes a GPU and the measurements."""
    asked = {}

    def bench(configs, rounds, programs):
        asked.update(configs=configs, programs=programs)
        raise RunError("enough")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("soflow.comparison.bench.bench", bench)
    assert main.run(["bench", "digits", *SMALL, "--objectives", "soflow"]) == 1
    assert list(asked["configs"]) == ["soflow", "soflow, plain attention"]
    assert asked["programs"]["soflow, plain attention"][-1] == "math"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--objectives", "meanflow"], "mean_flow"),
        (["--rounds", "0"], "--rounds"),
        (["--out", "nowhere/x.json"], "--out"),
        (["network.patch=3"], "size 8"),
    ],
)
def test_wrong_use_is_one_line(arguments, word, capfd):
    assert main.run(["bench", "digits", *arguments]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert word in line


def test_costs_are_measured_again_for_more_rounds_only(tmp_path):
    configs = read_objectives("digits", ["soflow", "imf"], SMALL)
    with costs_without_measuring() as asked:
        for rounds in (1, 3, 3, 1):
            found = costs_of(configs, tmp_path / "cost.json", rounds)
    assert len(asked) == 2
    assert found["imf"].summary.rounds == 3

"""Estimates compared with counts by hand, and the docs page that shows them."""

import importlib.util
from pathlib import Path

import pytest

from soflow.cli import main
from soflow.comparison.counting import count
from soflow.comparison.estimate import PEAK, SHARE, Estimates, estimate, kept_for_backward
from soflow.config import read_recipe
from support.settings import TINY_DIT

ROOT = Path(__file__).parents[2]
WIDTH, DEPTH = 64, 3
TINY_MLP = [
    *(f"network.width={WIDTH}", f"network.depth={DEPTH}"),
    *("objective.name=flow_matching", "precision=fp32"),
]
FLOAT32_DIT = [*TINY_DIT, "precision=fp32"]
UNGUIDED = "objective.guidance.scale=1"


def mlp_parameters_by_hand(width, depth, dimensions, rows):
    """Parameters of two time embeddings, label table, blocks of three layers, first and last."""
    time = (256 + 1) * width + (width + 1) * width
    ends = (dimensions + 1) * width + (width + 1) * dimensions
    return 2 * time + rows * width + depth * 3 * (width + 1) * width + ends


def mlp_kept_by_hand(width, depth):
    """The number of values per sample that are saved for the backward pass.

    Linear layers and SiLU save their inputs. A tensor that is the input of both is saved once.
    """
    times = 2 * 2  # input and output of SiLU; the output is the input of the second layer
    condition = 2  # input and output of SiLU, which all blocks share
    block = 4  # x, silu(x), the sum before SiLU, and its SiLU
    ends = 2  # input of the last SiLU, and input of the last layer
    return (times + condition + depth * block + ends) * width + 2 * 256


def test_memory_of_a_linear_stack_for_its_gradient():
    config = read_recipe("moons", [*TINY_MLP, "data.num_classes=0"])
    by_hand = 4 * mlp_kept_by_hand(WIDTH, DEPTH)
    for samples in (8, 40):
        kept = kept_for_backward(config, samples) / samples
        # The loss also saves a few values per sample, less than one layer.
        assert by_hand <= kept < by_hand + 4 * WIDTH / 2


def test_activation_memory_grows_with_the_batch_and_excludes_weights():
    for overrides in ([], ["objective.name=mean_flow"], ["objective.name=consistency"]):
        config = read_recipe("digits", [*FLOAT32_DIT, *overrides])
        assert kept_for_backward(config, 48) == pytest.approx(
            3 * kept_for_backward(config, 16), rel=1e-3
        )


def test_every_block_adds_the_same_memory():
    one, two, four = (
        kept_for_backward(read_recipe("digits", [*FLOAT32_DIT, f"network.depth={d}"]), 16)
        for d in (1, 2, 4)
    )
    assert four - two == 2 * (two - one) > 0


def test_states_equal_a_hand_calculation():
    config = read_recipe(
        "moons", [*TINY_MLP, "data.num_classes=0", "ema.float64=true", "train.batch_size=64"]
    )
    parameters = mlp_parameters_by_hand(WIDTH, DEPTH, dimensions=2, rows=1)
    one = estimate(config)
    assert one.parameters == parameters
    # Weights, gradients, two moments, EMA weights in float64.
    assert one.memory.states == parameters * (4 + 4 + 2 * 4 + 8)
    assert one.memory.total == one.memory.states + kept_for_backward(config, 64)

    shared = estimate(config, gpus=2)  # adds gradient buckets
    assert (shared.memory.states, shared.samples) == (parameters * 28, 32)
    assert shared.memory.activations == pytest.approx(one.memory.activations / 2, rel=1e-3)
    sharded = estimate(config.model_copy(update={"parallel": "fsdp"}), gpus=2)
    assert sharded.memory.states == parameters * 12
    assert sharded.memory.activations == shared.memory.activations


def test_accumulation_reduces_activation_memory():
    whole, parts = (
        estimate(read_recipe("digits", [*FLOAT32_DIT, f"train.accumulate={n}"])) for n in (1, 4)
    )
    assert parts.memory.activations == pytest.approx(whole.memory.activations / 4, rel=1e-3)
    assert (parts.memory.states, parts.samples, parts.flops) == (
        whole.memory.states,
        32,
        whole.flops,
    )


def test_hours_are_operations_divided_by_the_rate():
    config = read_recipe("digits", [*FLOAT32_DIT, "train.steps=1000", "train.batch_size=64"])
    flops = count(config).flops_per_sample * 64 * 1000  # counted by torch
    assert estimate(config, flops_per_second=1e9).gpu_seconds == pytest.approx(flops / 1e9)
    assert estimate(config).gpu_seconds == pytest.approx(flops / (SHARE * PEAK["float32"]))
    assert estimate(config, gpus=4).gpu_seconds == estimate(config).gpu_seconds
    tf32 = estimate(config.model_copy(update={"precision": "tf32"}))
    assert tf32.gpu_seconds == pytest.approx(flops / (SHARE * PEAK["tf32"]))


def test_under_bf16_the_pair_stays_in_float32():
    """The pair is a quarter of the batch and costs 4 forward passes. Flow matching has no pair.

    Time embeddings also stay in float32, but cost little with many tokens.
    """
    larger = [*FLOAT32_DIT, "network.patch=1", "network.width=64", "network.depth=4"]
    made = {
        name: read_recipe("digits", [*larger, UNGUIDED, f"objective.name={name}"])
        for name in ("soflow", "flow_matching")
    }
    counted = {}
    for precision in ("fp32", "bf16", "bf16-tf32"):
        for name, config in made.items():
            counted[name, precision] = estimate(config.model_copy(update={"precision": precision}))
    soflow = counted["soflow", "bf16"].flops
    assert soflow["float32"] / sum(soflow.values()) == pytest.approx(
        0.25 * 4 / (3 + 0.25), rel=0.02
    )
    assert counted["soflow", "bf16-tf32"].flops == {
        "bfloat16": soflow["bfloat16"],
        "tf32": soflow["float32"],
    }
    embeddings = counted["flow_matching", "bf16"].flops["float32"]
    assert embeddings / sum(counted["flow_matching", "bf16"].flops.values()) < 0.02
    for name in made:
        assert sum(counted[name, "bf16"].flops.values()) == sum(
            counted[name, "fp32"].flops.values()
        )
    kept = {name: one.memory.activations for name, one in counted.items()}
    assert kept["flow_matching", "bf16"] < kept["soflow", "bf16"] < kept["soflow", "fp32"]
    assert kept["soflow", "fp32"] == pytest.approx(kept["flow_matching", "fp32"], rel=1e-3)


def test_the_command_says_that_figures_are_estimates(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("soflow.comparison.bench.bench", None)  # no measurement
    arguments = [
        "bench",
        "digits",
        "imagenet256-b4",
        "network.depth=1",
        "--estimate",
        "--gpus",
        "2",
    ]
    assert main.run([*arguments, "--out", str(tmp_path / "needs.json")]) == 0
    shown = capfd.readouterr().out
    for word in (
        "estimates, not measured: 2 GPUs",
        "imagenet256-b4",
        "30% of the peak",
        "an assumption, not a measurement",
    ):
        assert word in shown
    found = Estimates.read(tmp_path / "needs.json")
    assert "assumption" in found.assumption
    assert found.estimates.keys() == {"digits", "imagenet256-b4"}
    assert found.estimates["imagenet256-b4"].samples == 128


def test_the_estimate_accepts_objectives_and_a_measured_rate(capfd):
    arguments = [
        "bench",
        "digits",
        *TINY_DIT,
        "--estimate",
        "--objectives",
        "soflow,mean_flow",
        "--flops-per-second",
        "2e14",
    ]
    assert main.run(arguments) == 0
    shown = capfd.readouterr().out
    for word in ("digits, soflow", "digits, mean_flow", "200 TFLOP/s on each GPU, as given"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--gpus", "2"], "--estimate"),
        (["--estimate", "--gpus", "0"], "--gpus"),
        (["--estimate", "--rounds", "2"], "--rounds"),
        (
            ["--estimate", "--gpus", "3"],
            "train.batch_size=128",
        ),
        (["--estimate", "--flops-per-second", "0"], "--flops-per-second"),
        (["--estimate", "imagenet256"], "imagenet256-b4"),
        (["--estimate", "network.patch=3"], "size 8"),
    ],
)
def test_wrong_use_is_one_line(arguments, word, capfd):
    assert main.run(["bench", "digits", *arguments]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert word in line


def the_generator():
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "benchmarks" / "cluster.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_is_counted_today():
    """Checks one row of one table. The slow test below checks all of them."""
    cluster, page = the_generator(), (ROOT / "docs" / "cluster.md").read_text()
    for settings, gpus in list(cluster.TABLES)[:1]:
        assert cluster.row("imagenet256-b4", settings, gpus) in page.splitlines()
        assert cluster.command(settings, gpus) in page


@pytest.mark.slow
def test_the_page_is_what_its_generator_writes():
    assert the_generator().page() == (ROOT / "docs" / "cluster.md").read_text()


def test_settings_that_train_a_large_batch_can_be_counted():
    """A batch of 128 has one composed jump, 3 % of 52 jumps."""
    few = ["objective.composed_share=0.03", "train.batch_size=128"]
    assert count(read_recipe("digits", [*TINY_DIT, *few])).flops_per_sample > 0

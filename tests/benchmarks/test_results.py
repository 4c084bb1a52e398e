"""The script that runs the published comparisons seed by seed."""

import importlib.util
from pathlib import Path

import pytest

from soflow.comparison.record import Comparison

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results", BENCHMARKS / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def only_seed(results, seed, factor=1.0, names=None):
    """Results of one run per objective, whose distances are multiplied by `factor`."""
    objectives = {}
    for name in names or results.objectives:
        one = results.objectives[name]
        run = one.runs[0]
        rows = [row.model_copy(update={"distance": factor * row.distance}) for row in run.rows]
        run = run.model_copy(update={"seed": seed, "rows": rows})
        objectives[name] = one.model_copy(update={"runs": [run]})
    return results.model_copy(update={"objectives": objectives, "seeds": [seed]})


def test_seeds_run_one_by_one_are_joined(script):
    kept = Comparison.read(BENCHMARKS / "results" / "fashion-mnist-peers.json")
    names = ["soflow", "jump_flow", "mean_flow"]
    first = only_seed(kept, 1, names=names)
    second = only_seed(kept, 0, 2.0, ["soflow", "mean_flow"])
    joined = script.joined(first, second)
    assert joined.seeds == [0, 1]
    (one,) = first.objectives["soflow"].one_step
    assert joined.objectives["soflow"].one_step == [2 * one, one]
    assert [run.seed for run in joined.objectives["jump_flow"].runs] == [1]
    assert script.uneven(joined) == ["Seeds: JumpFlow (1); all others (0, 1)."]
    assert script.uneven(first) == []
    # A run replaces the kept one of its seed. The other objectives keep theirs.
    again = script.joined(joined, only_seed(kept, 1, 3.0, ["soflow", "mean_flow"]))
    assert again.objectives["soflow"].one_step == [2 * one, 3 * one]
    assert again.objectives["jump_flow"] == joined.objectives["jump_flow"]
    # Runs without the base keep the ratios to it.
    other = only_seed(kept, 0, 6.0, ["mean_flow"]).model_copy(update={"base": "mean_flow"})
    without = script.joined(joined, other)
    assert without.base == "soflow"
    ratios = joined.ratios("mean_flow")
    assert without.ratios("mean_flow") == pytest.approx([3 * ratios[0], ratios[1]])
    # Runs with other settings are not mixed.
    changed = only_seed(kept, 2, 5.0, ["soflow"])
    settings = {"settings": {**changed.objectives["soflow"].settings, "p": 0.5}}
    changed.objectives["soflow"] = changed.objectives["soflow"].model_copy(update=settings)
    other = script.joined(again, changed)
    assert other.objectives["soflow"].one_step == [5 * one]
    assert len(other.objectives["mean_flow"].runs) == 2


def test_the_verdict_compares_the_seeds_of_all_objectives(script):
    """MeanFlow lacks the seed in which all distances are larger."""
    kept = Comparison.read(BENCHMARKS / "results" / "fashion-mnist-peers.json")
    names = ["soflow", "mean_flow"]
    both = script.joined(only_seed(kept, 0, 1.0, names), only_seed(kept, 1, 9.0, names[:1]))
    first = script.verdict(only_seed(kept, 0, 1.0, names))
    assert script.verdict(both) == f"For the seeds that all have (0): {first}"


def test_the_verdict_of_variants_has_no_second_table_of_distances(script):
    results = Comparison.read(BENCHMARKS / "results" / "ideas-digits.json")
    sentence = script.verdict(results)
    assert "|" not in sentence
    lowest = min(one.one_step[0] for one in results.objectives.values())
    assert f"{lowest:.3g}" in sentence


def test_the_commands_name_what_was_run(script):
    kept = Comparison.read(BENCHMARKS / "results" / "fashion-mnist-peers.json")
    section = next(one for one in script.SECTIONS if one.name == "fashion-mnist-peers")
    first = only_seed(kept, 0, names=["soflow", "jump_flow", "mean_flow"])
    second = only_seed(kept, 2, names=["soflow", "jump_flow"])
    (line,) = script.commands(section, first)
    assert "--objectives soflow,jump_flow,mean_flow " in line
    assert line.endswith("--seeds 1")
    variants = next(one for one in script.SECTIONS if one.name == "ideas-fashion-mnist")
    (line,) = script.commands(variants, first)
    assert "--only 'soflow, jump_flow, mean_flow' " in line
    ends = [line.partition("--seeds ")[2] for line in script.commands(section, second)]
    assert ends == ["1 train.seed=2"]


def test_results_of_other_settings_are_not_joined(script):
    kept = Comparison.read(BENCHMARKS / "results" / "fashion-mnist-peers.json")
    new = only_seed(kept, 1).model_copy(update={"overrides": ["train.steps=5"]})
    with pytest.raises(AssertionError, match="overrides"):
        script.joined(kept, new)

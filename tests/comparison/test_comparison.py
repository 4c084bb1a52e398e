"""soflow compare: what is equal between methods, what is kept when it stops, and what its tables say."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest

from soflow.cli import main
from soflow.comparison import compare as comparison
from soflow.comparison import cost as costs
from soflow.comparison import page as side_by_side
from soflow.comparison.measure import Measurement
from soflow.config import read_objectives
from soflow.errors import InputError
from soflow.evaluation import evaluate
from support.settings import TINY_DIT
from support.watching import at_each_step

SETTINGS = [
    *TINY_DIT,
    "train.steps=4",
    "train.batch_size=16",
    "train.log_every=2",
    "evaluate.num=40",
    "checkpoint.every=2",
]
SECONDS = {
    "soflow": 3.0,
    "mean_flow": 6.0,
    "shortcut": 4.0,
    "consistency": 1.5,
    "flow_matching": 2.0,
}
BYTES = {
    "soflow": 2**28,
    "mean_flow": 2**29,
    "shortcut": 2**28,
    "consistency": 2**27,
    "flow_matching": 2**28,
}


@pytest.fixture
def known_costs(monkeypatch):
    """Measurements that take no time, with ratios known beforehand."""

    def bench(configs, rounds, on_done):
        asked.append(list(configs))
        return {
            name: [
                Measurement(
                    SECONDS[config.objective.name],
                    BYTES[config.objective.name],
                    1e6,
                    1e5,
                    100,
                    1e9,
                    1e3,
                    1.0,
                    "cpu",
                )
            ]
            * rounds
            for name, config in configs.items()
        }

    asked: list[list[str]] = []
    monkeypatch.setattr(costs, "bench", bench)
    return asked


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Timing and diagnostics on a handful of samples: they are not what is tested here."""
    monkeypatch.setattr(evaluate, "TIMED_BATCH", 5)
    monkeypatch.setattr(evaluate, "DIAGNOSTIC_POINTS", 10)


class Told(comparison.Progress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def compare(
    out, methods=("soflow", "mean_flow"), seeds=2, budget="steps", overrides=(), progress=None
):
    return comparison.compare(
        "digits", out, methods, seeds, budget, [*SETTINGS, *overrides], 1, progress
    )


def test_all_is_equal_but_the_objective():
    configs = read_objectives(
        "digits", comparison.METHODS, [*SETTINGS, "objective.guidance.scale=2.5"]
    )
    assert list(configs) == list(comparison.METHODS)
    rest = [config.model_dump(exclude={"objective"}) for config in configs.values()]
    assert all(one == rest[0] for one in rest)
    assert {config.guidance_scale for name, config in configs.items() if name != "consistency"} == {
        2.5
    }


def test_settings_of_one_method_reach_it_alone():
    configs = read_objectives(
        "digits",
        ["soflow", "mean_flow"],
        ["soflow:objective.flow_matching_share=0.5", "mean_flow:objective.p=0.75"],
    )
    assert configs["soflow"].objective.flow_matching_share == 0.5
    assert configs["soflow"].objective.p == 1.0
    assert configs["mean_flow"].objective.p == 0.75


def test_every_method_every_seed_and_nothing_twice(tmp_path, known_costs):
    methods = comparison.METHODS
    results = compare(tmp_path, methods)
    assert list(results["methods"]) == list(methods)
    samplers = {
        name: {row["sampler"] for row in method["runs"][0]["rows"]}
        for name, method in results["methods"].items()
    }
    assert samplers["soflow"] == samplers["mean_flow"] == {"renoise", "ode", "heun"}
    assert samplers["flow_matching"] == {"euler", "heun"}
    assert samplers["consistency"] == {"renoise"}
    assert samplers["shortcut"] == {"ode", "heun"}
    for method in results["methods"].values():
        assert [run["seed"] for run in method["runs"]] == [0, 1]
        assert method["steps"] == 4
        for run in method["runs"]:
            few = sorted({row["nfe"] for row in run["rows"]} - {64})
            assert few == [1, 2, 4]
            for curve in run["curve"].values():
                assert [point[0] for point in curve] == [1, 2, 3, 4]
                assert all(point[1] <= later[1] for point, later in pairwise(curve))
            one_step = next(row["distance"] for row in run["rows"] if row["nfe"] == 1)
            assert run["curve"][next(iter(run["curve"]))][-1][2] == pytest.approx(one_step)

    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.jsonl")}
    told = Told()
    again = compare(tmp_path, methods, progress=told)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.jsonl")} == before
    assert len(told.notes) == 10
    assert all("done before" in note for note in told.notes)
    assert again == results
    assert known_costs == [list(methods)]  # measured once


@pytest.mark.slow
def test_it_goes_on_where_it_stopped_and_gets_what_it_would_have_got(tmp_path, known_costs):
    whole = compare(tmp_path / "whole")

    class Stopping(Told):
        def training(self, title):
            stop_at = 3 if "run 2" in title else math.inf

            def stop(done):
                if done >= stop_at:
                    raise KeyboardInterrupt

            return at_each_step(stop)

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "cut", progress=Stopping())
    told = Told()
    cut = compare(tmp_path / "cut", progress=told)
    assert "run 1 of 4: soflow, seed 0: done before" in told.notes
    assert not any("run 2 of 4" in note and "done before" in note for note in told.notes)

    def distances(results):
        return {
            (name, run["seed"]): [row["distance"] for row in run["rows"]]
            + [p[2] for c in run["curve"].values() for p in c]
            for name, method in results["methods"].items()
            for run in method["runs"]
        }

    assert distances(cut) == distances(whole)


def test_methods_and_seeds_can_be_added(tmp_path, known_costs):
    compare(tmp_path, ["soflow"], seeds=1)
    results = compare(tmp_path, ["soflow", "consistency"], seeds=2)
    assert {name: len(method["runs"]) for name, method in results["methods"].items()} == {
        "soflow": 2,
        "consistency": 2,
    }
    assert known_costs == [["soflow"], ["soflow", "consistency"]]  # the new one beside SoFlow


def test_costs_are_always_held_against_soflow(tmp_path, known_costs):
    """Whatever stands first, and also where SoFlow comes in later."""
    results = compare(tmp_path, ["mean_flow", "consistency"], seeds=1)
    assert results["base"] == "mean_flow"
    assert results["methods"]["consistency"]["cost"]["step_ratio"] == [0.25] * 3
    results = compare(tmp_path, ["mean_flow", "consistency", "soflow"], seeds=1)
    assert results["base"] == "soflow"
    assert results["methods"]["mean_flow"]["cost"]["step_ratio"] == [2] * 3
    assert results["methods"]["consistency"]["cost"]["memory_ratio"] == [0.5] * 3
    assert "ratios to SoFlow's" in side_by_side.markdown(results)


def test_a_mistaken_command_leaves_what_is_there_as_it_was(tmp_path, known_costs):
    """Another measurement of the costs would give other steps; runs that were begun keep theirs."""
    methods = ["soflow", "mean_flow"]
    whole = compare(tmp_path, methods, seeds=1, budget="time")
    for override in ("optimizer.lr=0.5", "evaluate.num=50", "evaluate.nfe=[1]"):
        with pytest.raises(InputError, match="was begun with"):
            compare(tmp_path, methods, seeds=1, budget="time", overrides=[override])
    assert len(known_costs) == 1
    SECONDS["mean_flow"], before = 12.0, SECONDS["mean_flow"]
    try:
        (tmp_path / "cost.json").unlink()
        again = compare(tmp_path, methods, seeds=1, budget="time")
    finally:
        SECONDS["mean_flow"] = before
    assert again["methods"]["mean_flow"]["steps"] == whole["methods"]["mean_flow"]["steps"] == 2


def test_what_soflow_evaluate_writes_does_not_change_a_comparison(tmp_path, known_costs):
    results = compare(tmp_path, ["soflow"], seeds=1)
    folder = tmp_path / "soflow-seed-0"
    assert (
        main.run(
            ["evaluate", str(folder), "--features", "coordinates", "--num", "20", "--nfe", "2"]
        )
        == 0
    )
    assert compare(tmp_path, ["soflow"], seeds=1) == results


def test_one_step_is_always_among_what_is_evaluated(tmp_path, known_costs):
    results = compare(tmp_path, ["soflow"], seeds=1, overrides=["evaluate.nfe=[2]"])
    assert {row["nfe"] for row in results["methods"]["soflow"]["runs"][0]["rows"]} == {1, 2, 64}
    comparison.write_page(results, tmp_path)


def test_curves_with_points_missing_are_drawn_where_they_meet():
    assert side_by_side.common([[[1, 0.1, 5.0], [2, 0.2, 4.0]], [[2, 0.3, 3.0]]]) == [
        [[2, 0.2, 4.0]],
        [[2, 0.3, 3.0]],
    ]


def test_the_time_budget_gives_as_many_steps_as_soflows_seconds_have_room_for(
    tmp_path, known_costs
):
    results = compare(tmp_path, ["mean_flow", "soflow", "consistency"], seeds=1, budget="time")
    assert {name: method["steps"] for name, method in results["methods"].items()} == {
        "mean_flow": 2,
        "soflow": 4,
        "consistency": 8,
    }


def test_it_is_not_for_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        compare(tmp_path)


def test_means_and_spreads():
    values = [1.0, 2.0, 4.5]
    told = side_by_side.over_seeds(values)
    assert told == f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g}"
    assert side_by_side.over_seeds([1.25]) == "1.25"


def test_the_page_and_the_tables_hold_every_method(tmp_path, known_costs):
    results = compare(tmp_path, ["soflow", "flow_matching"], seeds=1)
    results["recipe"] = "<b>digits</b>"
    comparison.write_page(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>digits</b>" not in page  # a recipe's name is text
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside the page is needed
    table = (tmp_path / "table.md").read_text()
    for word in ("SoFlow", "flow matching", "held-out real"):
        assert word in table
        assert word in page
    one = results["methods"]["soflow"]["runs"][0]["rows"][0]["distance"]
    assert f"| SoFlow | renoise | {one:.3g} |" in table
    for picture in ("plots.png", "samples.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_command_measures_trains_and_shows(tmp_path, capfd, known_costs):
    out = tmp_path / "out"
    arguments = [
        "compare",
        "digits",
        *SETTINGS,
        "--objectives",
        "soflow,flow_matching",
        "--seeds",
        "1",
        "--rounds",
        "1",
    ]
    assert main.run([*arguments, "--out", str(out)]) == 0
    shown = capfd.readouterr()
    assert "run 2 of 2: flow_matching, seed 0, 4 steps" in shown.err
    assert "left in all" in shown.err
    assert "32 Heun steps" in shown.out
    results = json.loads((out / "results.json").read_text())
    assert results["methods"]["soflow"]["cost"]["step_ratio"] == [1, 1, 1]
    assert results["methods"]["flow_matching"]["cost"]["flops_per_sample"] == 1e6


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--objectives", "soflow,meanflow"], "mean_flow"),
        (["--objectives", "soflow,soflow"], "name each once"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--budget", "money"], "choose steps or time"),
        (["--budget", "time", "--objectives", "mean_flow"], "name soflow"),
        (["objective.p=0.5"], "write METHOD:objective.p=0.5, such as soflow:objective.p=0.5"),
        (
            ["mean_flow:objective.p=0.5", "--objectives", "soflow"],
            "is for mean_flow, but the methods are soflow",
        ),
        (["soflow:objective.q=0.5"], "unknown key 'objective.q'"),
        (["soflow:train.batch_size=8"], "so write train.batch_size=8 for all of them"),
        (["--objectives", "soflow, soflow"], "name each once"),
        (["evaluate.nfe=[]"], "evaluate.nfe"),
        (["train.stepz=5"], "train.steps"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(arguments, word, capfd, monkeypatch):
    monkeypatch.setattr(
        costs, "bench", lambda configs, rounds, on_done: pytest.fail("it began to measure")
    )
    assert main.run(["compare", "digits", *SETTINGS, *arguments]) == 2
    lines = [
        line for line in capfd.readouterr().err.strip().splitlines() if "classifier" not in line
    ]
    assert len(lines) == 1
    assert word in lines[0]


def test_a_damaged_file_and_runs_of_other_settings_are_named(tmp_path, known_costs, capfd):
    compare(tmp_path, ["soflow"], seeds=1)
    arguments = [
        "compare",
        "digits",
        *SETTINGS,
        "--objectives",
        "soflow",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert main.run([*arguments, "optimizer.lr=0.5"]) == 2
    assert "was begun with optimizer.lr=0.001" in capfd.readouterr().err
    for content in ("{", '{"soflow": 3}', '{"soflow": {"asked": 1, "measured": []}}'):
        before = (tmp_path / "cost.json").read_text()
        known = json.loads(before)["soflow"]
        (tmp_path / "cost.json").write_text(
            content.replace('"asked": 1', f'"asked": {json.dumps(known["asked"])}')
        )
        assert main.run(arguments) == 1
        assert "cost.json is damaged" in capfd.readouterr().err
        (tmp_path / "cost.json").write_text(before)
    for file in ("compared.json", "curve.json"):
        before = (tmp_path / "soflow-seed-0" / file).read_text()
        (tmp_path / "soflow-seed-0" / file).write_text('{"renoise 1": 7}')
        assert main.run(arguments) == 1
        assert f"{file} is damaged" in capfd.readouterr().err
        (tmp_path / "soflow-seed-0" / file).write_text(before)
    assert main.run(arguments) == 0

"""`soflow compare`: equal conditions for all objectives, resuming, and the report."""

import json
import logging
import re
import shutil
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch

from soflow.cli import main
from soflow.comparison import compare as comparison
from soflow.comparison import cost as costs
from soflow.comparison import page as pages
from soflow.comparison import plots, runs
from soflow.comparison.record import Comparison, Curve, Point
from soflow.comparison.tables import markdown, over_seeds
from soflow.config import read_objectives, read_recipe
from soflow.errors import InputError
from soflow.system.progress import Task
from support.costs import SECONDS, costs_without_measuring, measured
from support.settings import TINY_DIT

SETTINGS = [
    *TINY_DIT,
    "train.steps=4",
    "train.batch_size=16",
    "train.log_every=2",
    "evaluate.num=40",
    "checkpoint.every=2",
]
#: Evaluate fewer rows.
QUICK = [*SETTINGS, "evaluate.nfe=[1]"]


@pytest.fixture
def known_costs():
    with costs_without_measuring() as asked:
        yield asked


def compare(out, objectives, seeds=1, budget="steps", overrides=(), settings=QUICK, **more):
    settings = [*settings, *overrides]
    return comparison.compare("digits", out, objectives, seeds, budget, settings, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and results of a comparison of all objectives. Read-only."""
    out = tmp_path_factory.mktemp("comparison")
    with costs_without_measuring() as asked:
        results = compare(out, comparison.OBJECTIVES, settings=SETTINGS)
    assert asked == [list(comparison.OBJECTIVES)]
    return out, results


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """The folder and results of a comparison with a single run."""
    out = tmp_path_factory.mktemp("one")
    with costs_without_measuring():
        return out, compare(out, ["soflow"])


def command(out, *more, objectives="soflow"):
    arguments = ["compare", "digits", *QUICK, "--objectives", objectives, "--seeds", "1"]
    return main.run([*arguments, "--out", str(out), *more])


def test_all_is_equal_except_the_objective():
    overrides = [*SETTINGS, "objective.guidance.scale=2.5"]
    configs = read_objectives("digits", comparison.OBJECTIVES, overrides)
    assert list(configs) == list(comparison.OBJECTIVES)
    first, *others = [config.model_dump(exclude={"objective"}) for config in configs.values()]
    assert all(other == first for other in others)
    scales = {config.guidance_scale for name, config in configs.items() if name != "consistency"}
    assert scales == {2.5}


def test_settings_of_one_objective_do_not_affect_others():
    overrides = ["soflow:objective.flow_matching_share=0.5", "mean_flow:objective.p=0.75"]
    configs = read_objectives("digits", ["soflow", "mean_flow"], overrides)
    assert configs["soflow"].objective.flow_matching_share == 0.5
    assert configs["soflow"].objective.p == 1.0
    assert configs["mean_flow"].objective.p == 0.75


def test_every_objective_is_evaluated_by_its_samplers(whole):
    _, results = whole
    assert list(results.objectives) == list(comparison.OBJECTIVES)
    samplers = {
        name: {row.sampler for row in objective.runs[0].rows}
        for name, objective in results.objectives.items()
    }
    assert samplers["soflow"] == samplers["mean_flow"] == {"renoise", "ode"}
    assert samplers["flow_matching"] == {"euler", "heun"}
    assert samplers["consistency"] == {"renoise"}
    assert samplers["shortcut"] == {"ode"}
    for objective in results.objectives.values():
        assert [run.seed for run in objective.runs] == [0]
        assert objective.steps == 4
        for run in objective.runs:
            assert {row.nfe for row in run.rows if row.sampler != "heun"} == {1, 2, 4}


def test_curves_have_a_point_per_evaluation_and_end_at_the_last_one(whole):
    _, results = whole
    for name, objective in results.objectives.items():
        for run in objective.runs:
            (curve,) = run.curves
            assert [point.step for point in curve.points] == [1, 2, 3, 4]
            assert all(one.seconds <= two.seconds for one, two in pairwise(curve.points))
            if name == "flow_matching":  # flow matching does not learn jumps
                assert (curve.sampler, curve.nfe) == ("heun", 8)
            else:
                at_the_end = next(row.distance for row in run.rows if row.nfe == 1)
                assert curve.points[-1].distance == pytest.approx(at_the_end)


def test_curves_draw_few_samples_and_heun_if_asked(tmp_path, known_costs, monkeypatch):
    """NFE 1 is always evaluated, even if evaluate.nfe does not have it."""
    monkeypatch.setattr(runs, "CURVE_SAMPLES", 20)
    monkeypatch.setattr(runs, "HEUN", ("heun", 4))
    overrides = ["train.steps=1", "evaluate.nfe=[2]"]
    results = compare(tmp_path, ["soflow"], overrides=overrides, heun=True)
    (run,) = results.objectives["soflow"].runs
    drawn = [(curve.sampler, curve.nfe, curve.num) for curve in run.curves]
    assert drawn == [("renoise", 1, 20), ("heun", 4, 20)]
    assert {row.nfe for row in run.rows if row.sampler != "heun"} == {1, 2}


def test_a_comparison_on_data_that_give_the_shape(tmp_path, known_costs):
    """A recipe for custom data leaves shape and classes to the data."""
    np.save(tmp_path / "x.npy", torch.randn(40, 3).numpy())
    settings = [
        f"data.path={tmp_path / 'x.npy'}", "network.width=16", "network.depth=1", "train.steps=1",
        "train.batch_size=8", "evaluate.num=10", "evaluate.nfe=[1]",
    ]  # fmt: skip
    results = comparison.compare("vectors", tmp_path / "out", ["soflow"], 1, "steps", settings)
    assert results.objectives["soflow"].runs[0].rows


def test_unguided_objectives_are_named(tmp_path, known_costs, caplog):
    caplog.set_level(logging.INFO)
    compare(tmp_path / "guided", ["soflow", "consistency"])
    (line,) = [text for text in caplog.messages if "without guidance" in text]
    assert line.startswith("consistency:")
    caplog.clear()
    compare(tmp_path / "plain", ["soflow", "consistency"], overrides=["objective.guidance.scale=1"])
    assert not [text for text in caplog.messages if "without guidance" in text]


def test_a_comparison_of_data_passed_from_python(tmp_path, known_costs):
    images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    settings = ["evaluate.features=coordinates"]

    def compared(data, seeds):
        return compare(tmp_path, ["soflow", "mean_flow"], seeds, overrides=settings, data=data)

    results = compared((images, labels), 1)
    assert results.reference.dataset == "python"
    assert results.reference.count == 60
    # More runs need the same data.
    assert compared((images, labels), 2).seeds == [0, 1]
    with pytest.raises(InputError, match="other data"):
        compared((images.flip(0), labels), 3)
    with pytest.raises(InputError, match=r"data\.source"):
        compared(None, 3)


def test_a_notebook_shows_the_table(whole):
    _, results = whole
    assert "| MeanFlow | ode |" in str(results)
    page = results._repr_html_()
    assert "<th>NFE 1</th>" in page
    assert f"<td>{results.objectives['mean_flow'].one_step[0]:.3g}</td>" in page


def test_a_finished_comparison_is_only_read(whole, caplog):
    out, results = whole
    caplog.set_level(logging.INFO, "soflow")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    with costs_without_measuring() as asked:
        again = compare(out, comparison.OBJECTIVES, settings=SETTINGS)
    assert again == results == Comparison.read(out / "results.json")
    assert {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")} == before
    notes = [record.getMessage() for record in caplog.records if "run " in record.getMessage()]
    assert len(notes) == len(comparison.OBJECTIVES)
    assert all("already done" in note for note in notes)
    assert asked == []  # costs are measured only once


def test_heun_steps_can_be_added_to_a_finished_run(one_run, tmp_path):
    first, results = one_run
    out = shutil.copytree(first, tmp_path / "copy")
    metrics = out / "soflow-seed-0" / "metrics.jsonl"
    before = metrics.read_bytes()
    with costs_without_measuring():
        again = compare(out, ["soflow"], heun=True)
    few = [row for row in again.objectives["soflow"].runs[0].rows if row.sampler != "heun"]
    assert len(few) == len(again.objectives["soflow"].runs[0].rows) - 1
    old = results.objectives["soflow"].runs[0].rows
    assert [row.distance for row in few] == [row.distance for row in old]
    assert metrics.read_bytes() == before
    with costs_without_measuring():
        assert compare(out, ["soflow"]) == again


def test_an_interrupted_comparison_gives_the_same_figures(tmp_path, known_costs, whole, caplog):
    caplog.set_level(logging.INFO, "soflow")

    class Interrupting(Task):
        def update(self, done, text=""):
            if done >= 3:
                raise KeyboardInterrupt

    @contextmanager
    def progress(title, total, done=0):
        yield Interrupting() if "run 2" in title else Task()

    objectives = ["soflow", "mean_flow"]
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, objectives, settings=SETTINGS, progress=progress)
    results = compare(tmp_path, objectives, settings=SETTINGS)
    notes = [record.getMessage() for record in caplog.records]
    assert "run 1 of 2: soflow, seed 0: already done" in notes
    assert not any("run 2 of 2" in note and "already done" in note for note in notes)

    def distances(results):
        runs = [results.objectives[name].runs[0] for name in objectives]
        rows = [[row.distance for row in run.rows] for run in runs]
        return rows, [[p.distance for curve in run.curves for p in curve.points] for run in runs]

    assert distances(results) == distances(whole[1])


def test_objectives_and_seeds_can_be_added_and_costs_are_relative_to_soflow(tmp_path, known_costs):
    short = ["train.steps=1"]
    results = compare(tmp_path, ["mean_flow"], overrides=short)
    assert results.base == "mean_flow"
    assert results.objectives["mean_flow"].cost.step_ratio == (1, 1, 1)
    results = compare(tmp_path, ["mean_flow", "soflow"], overrides=short)
    assert results.base == "soflow"
    assert [len(objective.runs) for objective in results.objectives.values()] == [1, 1]
    assert results.objectives["mean_flow"].cost.step_ratio == (2, 2, 2)
    assert results.objectives["mean_flow"].cost.memory_ratio == (2, 2, 2)
    assert "Ratios are relative to SoFlow" in markdown(results)
    assert known_costs == [["mean_flow"], ["soflow", "mean_flow"]]
    results = compare(tmp_path, ["soflow"], seeds=2, overrides=short)
    assert [run.seed for run in results.objectives["soflow"].runs] == [0, 1]


def test_within_soflows_time_others_get_as_many_steps_as_fit(tmp_path, known_costs):
    """A wrong command changes nothing, and runs keep their steps when costs are measured again."""
    objectives = ["soflow", "consistency"]
    steps = {"soflow": 4, "consistency": 8}
    results = compare(tmp_path, objectives, budget="time")
    assert {name: one.steps for name, one in results.objectives.items()} == steps
    for override in ("optimizer.lr=0.5", "evaluate.num=50", "evaluate.nfe=[2]"):
        with pytest.raises(InputError, match="-seed-0"):
            compare(tmp_path, objectives, budget="time", overrides=[override])
    assert len(known_costs) == 1
    (tmp_path / "cost.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SECONDS, "consistency", 12.0)
        again = compare(tmp_path, objectives, budget="time")
    assert {name: one.steps for name, one in again.objectives.items()} == steps


def test_soflow_evaluate_does_not_change_a_comparison(one_run):
    out, results = one_run
    options = ["--features", "coordinates", "--num", "20", "--nfe", "2"]
    assert main.run(["evaluate", str(out / "soflow-seed-0"), *options]) == 0
    assert compare(out, ["soflow"]) == results


def test_curves_end_where_all_runs_have_points():
    points = [Point(step=step, seconds=step / 10, distance=5.0) for step in (1, 2)]
    late = Point(step=2, seconds=0.3, distance=3.0)
    assert plots.common([points, [late]]) == [[points[1]], [late]]


def test_a_point_of_the_same_step_is_replaced():
    curve = Curve(sampler="ode", nfe=1, num=10)
    for step, distance in ((2, 1.0), (1, 3.0), (2, 2.0)):
        curve = curve.with_point(Point(step=step, seconds=0.0, distance=distance))
    assert [(point.step, point.distance) for point in curve.points] == [(1, 3.0), (2, 2.0)]


def test_a_comparison_rejects_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        compare(tmp_path, ["soflow"])


def test_means_and_standard_deviations():
    values = [1.0, 2.0, 4.5]
    assert over_seeds(values) == f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g}"
    assert over_seeds([1.25]) == "1.25"
    assert over_seeds([2790.0, 4750.0]) == "3,770 ± 1,400"
    assert over_seeds([]) == ""


def test_the_page_and_the_tables_contain_every_objective(whole):
    out, results = whole
    pages.write_page(results.model_copy(update={"recipe": "<b>digits</b>"}), out)
    page = (out / "report.html").read_text()
    assert "<b>digits</b>" not in page  # the name of a recipe is escaped
    assert not re.search(r'(src|href)="(?!data:)', page)  # the page is self-contained
    table = (out / "table.md").read_text()
    for word in ("SoFlow", "flow matching", "held-out real"):
        assert word in table
        assert word in page
    for block in re.findall(r"<table>", page):
        assert f'<div class="scroll">{block}' in page  # no table is wider than the page
    one = over_seeds(results.objectives["soflow"].one_step)
    assert f"| SoFlow | renoise | {one} |" in table
    for picture in ("plots.png", "samples.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_the_command_compares_and_shows(tmp_path, capfd, known_costs):
    assert command(tmp_path, "--rounds", "1", objectives="soflow,flow_matching") == 0
    shown = capfd.readouterr()
    assert "run 2 of 2: flow_matching, seed 0, 4 steps" in shown.err
    assert "left in total" in shown.err
    assert "objective" in shown.out
    results = Comparison.read(tmp_path / "results.json")
    assert results.objectives["soflow"].cost.step_ratio == (1, 1, 1)
    assert results.objectives["flow_matching"].cost.flops_per_sample == 1e6
    assert results.objectives["flow_matching"].cost.rounds == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--objectives", "soflow,meanflow"], "mean_flow"),
        (["--objectives", "soflow,soflow"], "soflow, soflow"),
        (["--objectives", "soflow, soflow"], "soflow, soflow"),
        (["--seeds", "0"], "--seeds"),
        (["--budget", "money"], "--budget"),
        (["--budget", "time", "--objectives", "mean_flow"], "soflow"),
        (["objective.p=0.5"], "soflow:objective.p=0.5"),
        (["mean_flow:objective.p=0.5", "--objectives", "soflow"], "mean_flow:objective.p=0.5"),
        (["soflow:objective.q=0.5"], "objective.q"),
        (["soflow:train.batch_size=8"], "train.batch_size=8"),
        (["evaluate.nfe=[]"], "evaluate.nfe"),
        (["train.stepz=5"], "train.steps"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(arguments, word, capfd, monkeypatch):
    monkeypatch.setattr(costs, "bench", lambda *args, **more: pytest.fail("it began to measure"))
    assert main.run(["compare", "digits", *SETTINGS, *arguments]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert word in line


def test_damaged_files_and_different_settings_are_named(one_run, capfd):
    out, _ = one_run
    assert command(out, "optimizer.lr=0.5") == 2
    assert "optimizer.lr=0.001" in capfd.readouterr().err
    cost = json.loads((out / "cost.json").read_text())
    without_a_pair = json.loads(json.dumps(cost))
    without_a_pair["objectives"]["soflow"]["base_measured"].append(measured("soflow").model_dump())
    damaged = {
        out / "cost.json": ["{", '{"objectives": {"soflow": 3}}', json.dumps(without_a_pair)],
        out / "soflow-seed-0" / "compared.json": ["", '{"renoise 1": 7}'],
        out / "soflow-seed-0" / "curve.json": ['{"curves": 7}'],
    }
    for file, contents in damaged.items():
        before = file.read_text()
        for content in contents:
            file.write_text(content)
            assert command(out) == 1
            (line,) = [x for x in capfd.readouterr().err.splitlines() if "already done" not in x]
            assert f"{file} is damaged" in line
        file.write_text(before)
    assert command(out) == 0


def test_costs_are_measured_again_if_a_step_costs_something_else():
    """Checkpointed activations change the time and memory of a step, but not its result."""
    plain, other = (
        costs.settings_of(read_recipe("digits", overrides))
        for overrides in ([], ["train.checkpoint_activations=true"])
    )
    assert plain != other
    assert plain == costs.settings_of(read_recipe("digits", ["train.steps=7"]))

"""`soflow compare --variants`: the runs, the base of the ratios, and the report."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest
from matplotlib.figure import Figure
from PIL import Image

from soflow.cli import main
from soflow.comparison import compare as comparison
from soflow.comparison import plots, tables
from soflow.comparison.page import write_page
from soflow.comparison.record import Comparison
from soflow.errors import InputError
from soflow.run.folder import RunFolder
from support.costs import costs_without_measuring
from support.settings import TINY_DIT

SETTINGS = [
    *TINY_DIT,
    "train.steps=2",
    "train.batch_size=16",
    "evaluate.num=40",
    "evaluate.nfe=[1,2]",
    "evaluate.features=coordinates",
]
VARIANTS = {
    "MeanFlow": {"objective": {"name": "mean_flow"}},
    "SoFlow": {"objective": {"name": "soflow"}},
    "weight | 4": {"objective": {"name": "jump_flow", "consistency_weight": 4}},
    "Muon": {"objective.name": "jump_flow", "optimizer": {"name": "muon"}},
}
KEPT = Path(__file__).parents[2] / "benchmarks" / "results"


def compare(out, variants=VARIANTS, seeds=1, overrides=(), **more):
    with costs_without_measuring():
        return comparison.compare(
            "digits", out, None, seeds, overrides=[*SETTINGS, *overrides], variants=variants, **more
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and results of a comparison of variants over two seeds. Read-only."""
    out = tmp_path_factory.mktemp("variants")
    return out, compare(out, seeds=2)


def test_variants_are_trained_with_their_settings_in_named_folders(whole):
    out, results = whole
    folders = {path.parent.name for path in out.glob("*/config.yaml")}
    names = ("meanflow", "soflow", "weight-4", "muon")
    assert folders == {f"{name}-seed-{seed}" for name in names for seed in (0, 1)}
    config = RunFolder(out / "weight-4-seed-1").read_config()
    assert (config.objective.name, config.objective.consistency_weight) == ("jump_flow", 4)
    assert (config.objective.guidance.scale, config.train.seed) == (1.15, 1)
    assert RunFolder(out / "muon-seed-0").read_config().optimizer.name == "muon"
    assert list(results.objectives) == list(VARIANTS)
    assert results.objectives["Muon"].settings == {
        "objective.name": "jump_flow",
        "optimizer.name": "muon",
    }
    assert Comparison.read(out / "results.json") == results


def test_costs_and_distances_are_relative_to_soflow_by_seed(whole):
    _, results = whole
    assert results.base == "SoFlow"
    assert results.objectives["MeanFlow"].cost.step_ratio == (2, 2, 2)
    base, one = results.objectives["SoFlow"].one_step, results.objectives["Muon"].one_step
    ratios = [a / b for a, b in zip(one, base, strict=True)]
    assert results.ratios("Muon") == ratios
    assert results.ratios("SoFlow") == [1, 1]
    header, *rows = tables.overview_rows(results)
    *rows, real = rows
    assert real[0] == "real data"
    assert [row[0] for row in rows] == list(VARIANTS)
    found = dict(zip(header, rows[-1], strict=True))
    assert found["ratio to SoFlow"] == f"{mean(ratios):.3f} ± {stdev(ratios):.3f}"
    assert found["step time ratio"] == "1.10"


def test_ratios_are_of_the_same_seed(whole):
    """Runs are matched by seed, not by their position in the list."""
    _, results = whole
    one = results.objectives["Muon"]
    turned = one.model_copy(update={"runs": one.runs[::-1]})
    objectives = {**results.objectives, "Muon": turned}
    other = results.model_copy(update={"objectives": objectives})
    assert other.ratios("Muon") == results.ratios("Muon")[::-1]


def test_without_soflow_the_first_variant_is_the_base(tmp_path):
    results = compare(tmp_path, only=["Muon", "MeanFlow"])
    assert list(results.objectives) == ["MeanFlow", "Muon"]
    assert results.base == "MeanFlow"
    assert results.objectives["Muon"].cost.step_ratio == pytest.approx([0.55] * 3)


def test_a_comparison_of_objectives_can_be_extended_by_variants(tmp_path):
    with costs_without_measuring():
        before = comparison.compare("digits", tmp_path, ["soflow"], 1, overrides=SETTINGS)
    metrics = tmp_path / "soflow-seed-0" / "metrics.jsonl"
    written = metrics.stat().st_mtime_ns
    after = compare(tmp_path, {"p = 0": {"objective.p": 0}, "SoFlow": {"objective.name": "soflow"}})
    assert metrics.stat().st_mtime_ns == written
    assert after.base == "SoFlow"
    assert after.objectives["SoFlow"].runs == before.objectives["soflow"].runs
    other = {"SoFlow": {"objective": {"name": "soflow", "p": 0}}}
    with pytest.raises(InputError, match=r"objective\.p=1"):
        compare(tmp_path, other)


def test_a_new_variant_does_not_inherit_settings_of_other_variants(tmp_path):
    first = {"tf32": {"precision": "tf32"}, "flat": {"ema": {"rampup": 0.0}}}
    compare(tmp_path, first)
    compare(tmp_path, {**first, "p = 0": {"objective.p": 0}, "steep": {"ema.rampup": 0.1}})
    configs = {
        name: RunFolder(tmp_path / f"{name}-seed-0").read_config()
        for name in ("tf32", "flat", "p-0", "steep")
    }
    assert configs["tf32"].precision == "tf32"
    assert configs["p-0"].precision == configs["flat"].precision != "tf32"
    assert [one.ema.rampup for one in configs.values()] == [0.05, 0, 0.05, 0.1]


def test_a_new_variant_computes_like_the_runs_that_were_begun_before(tmp_path):
    """Runs of an older version have no `ema.rampup`."""
    compare(tmp_path, {"old": {}}, overrides=["ema.rampup=0"])
    compare(tmp_path, {"old": {}, "new": {"objective.p": 0}, "steep": {"ema.rampup": 0.1}})
    rampups = [
        RunFolder(tmp_path / f"{name}-seed-0").read_config().ema.rampup
        for name in ("old", "new", "steep")
    ]
    assert rampups == [0, 0, 0.1]


def test_equal_time_gives_others_as_many_steps_as_fit(tmp_path):
    variants = {"first": {}, "twice": {"objective": {"name": "mean_flow"}}}
    settings = ["train.steps=4", "evaluate.nfe=[1]"]
    results = compare(tmp_path, variants, overrides=settings, budget="time")
    assert {name: one.steps for name, one in results.objectives.items()} == {"first": 4, "twice": 2}
    assert "the training time of first" in tables.about(results)
    with pytest.raises(InputError, match="first"):
        compare(tmp_path, variants, budget="time", only=["twice"])
    with pytest.raises(InputError, match=r"longer sets train\.steps"):
        compare(tmp_path, {**variants, "longer": {"train.steps": 9}}, budget="time")
    turned = {"twice": variants["twice"], "first": {}}
    with pytest.raises(InputError, match="time of first"):
        compare(tmp_path, turned, budget="time")


def test_equal_time_does_not_continue_runs_of_equal_steps(whole):
    out, _ = whole
    with pytest.raises(InputError, match="have equal steps"):
        compare(out, budget="time")


def test_the_page_shows_the_settings_of_each_variant(whole):
    out, results = whole
    write_page(results, out)
    html, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    for text in (html, table):
        assert "objective.consistency_weight=4" in text
        assert "the same network and initial weights" in text
        assert "the same optimizer" not in text
    assert r"| weight \| 4 | renoise |" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert len(widths) == 4  # overview, settings, all samplers, cost: no cell adds a column


def with_settings(results, settings):
    """Copies the results with other settings of the last variant."""
    name = list(results.objectives)[-1]
    one = results.objectives[name].model_copy(update={"settings": settings})
    return results.model_copy(update={"objectives": {**results.objectives, name: one}})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"network.name": "unet"}, "the same network"),
        ({"init_from": "runs/other"}, "initial weights"),
        ({"optimizer.lr": 0.1}, "the same optimizer"),
        ({"train.batch_size": 8}, "data in the same order, batches of 16"),
        ({"train.steps": 8}, "the same number of steps"),
    ],
)
def test_settings_that_differ_are_not_called_equal(whole, setting, words):
    _, results = whole
    assert words in tables.about(with_settings(results, {}))
    assert words not in tables.about(with_settings(results, setting))


def test_samples_seen_use_the_batch_size_of_the_variant(whole):
    _, results = whole
    changed = with_settings(results, {"train.batch_size": 8})
    assert [changed.batch_size_of(name) for name in results.objectives] == [16, 16, 16, 8]


def test_networks_with_different_inputs_are_not_called_equal(whole):
    _, results = whole
    one = results.objectives["Muon"]
    larger = one.model_copy(update={"cost": one.cost.model_copy(update={"parameters": 101})})
    changed = results.model_copy(update={"objectives": {**results.objectives, "Muon": larger}})
    assert "the same network" in tables.about(results)
    assert "the same network" not in tables.about(changed)


def with_many(results, count):
    one = results.objectives["Muon"]
    more = {f"{'a long name of a variant, ' * 2}{i}": one for i in range(count)}
    return results.model_copy(update={"objectives": {**results.objectives, **more}})


def overlaps(figure: Figure) -> bool:
    """Whether titles or legends of a figure overlap."""
    figure.draw_without_rendering()
    texts = [axes.title for axes in figure.axes]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_many_variants_have_different_colors_and_no_overlapping_text(whole):
    _, results = whole
    many = with_many(results, plots.MOST - 4)
    styles = plots.styles_of(many)
    assert len({(style.color, style.marker) for style in styles.values()}) == plots.MOST
    assert styles["SoFlow"].color == plots.COLORS["soflow"]
    assert styles["MeanFlow"].color == plots.COLORS["mean_flow"]
    figure = plots.plots(many)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == plots.MOST
    assert not overlaps(figure)
    heights = [axes.get_window_extent().height for axes in figure.axes]
    assert min(heights) > figure.bbox.height / 2  # the legend leaves room for the plots
    pictures = {name: Image.new("RGB", (80, 50)) for name in many.objectives}
    assert not overlaps(plots.sheets(pictures))


def test_more_variants_have_a_row_of_dots_each(whole):
    _, results = whole
    many = with_many(results, plots.MOST - 3)
    figure = plots.plots(many)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(many.objectives)
    lines = {line.get_label(): line for line in axes.get_lines()}
    for label, count in (("one step", 1), ("2 steps, ode", 2)):
        for x, row in zip(*lines[label].get_data(), strict=True):
            one = list(many.objectives.values())[row]
            assert x == mean(one.one_step if count == 1 else one.distances("ode", count))
        assert len(lines[label].get_xdata()) == len(many.objectives)
    assert not overlaps(figure)


def test_variants_do_not_reuse_colors_of_objectives():
    assert not set(plots.PALETTE) & set(plots.COLORS.values())


@pytest.mark.parametrize("name", ["digits-peers", "fashion-mnist-peers"])
def test_published_results_are_read(name):
    """The kept results of comparisons of objectives can be read and tabulated."""
    results = Comparison.read(KEPT / f"{name}.json")
    assert not results.variants
    assert results.ratios("soflow") == [1] * len(results.seeds)
    assert "the same network and initial weights, data in the same order" in tables.about(results)
    header, *rows = tables.quality_rows(results)
    assert header[0] == "objective"
    assert rows[0][:2] == ["SoFlow", "renoise"]
    assert plots.styles_of(results)["mean_flow"].color == plots.COLORS["mean_flow"]


def test_an_overview_compares_several_steps_of_one_sampler():
    """The first sampler of SoFlow is renoise, that of JumpFlow is ode. Both were evaluated."""
    results = Comparison.read(KEPT / "ideas-digits.json")
    header, *rows, _ = tables.overview_rows(results)
    for row in rows:
        found = dict(zip(header, row, strict=True))
        one = next(o for name, o in results.objectives.items() if tables.name_of(name) == row[0])
        assert found["sampler"] == "ode"
        assert found["NFE 1"] == tables.over_seeds(one.one_step)
        assert found["NFE 4"] == tables.over_seeds(one.distances("ode", 4))
    assert tables.few_step_sampler(results, "SoFlow") == "ode"


def test_the_command_compares_variants(tmp_path, capfd):
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(json.dumps({"SoFlow": {}, "p = 0": {"objective": {"p": 0}}, "no": {}}))
    arguments = ["compare", "digits", *SETTINGS, "--variants", str(file), "--seeds", "1"]
    with costs_without_measuring():
        assert main.run([*arguments, "--only", "SoFlow, p = 0", "--out", str(out)]) == 0
    shown = capfd.readouterr()
    assert "run 2 of 2: p = 0, seed 0" in shown.err
    assert "ratio to SoFlow" in shown.out
    assert list(Comparison.read(out / "results.json").objectives) == ["SoFlow", "p = 0"]
    assert (out / "p-0-seed-0" / "config.yaml").is_file()


def test_the_default_folder_is_named_after_recipe_and_file(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("SoFlow:\nb: {objective.p: 0}")
    short = [*SETTINGS, "train.steps=1", "evaluate.nfe=[1]", "--seeds", "1", "--budget", "time"]
    with costs_without_measuring():
        assert main.run(["compare", "digits", *short, "--variants", "mine.yaml"]) == 0
    assert (tmp_path / "runs" / "compare-digits-mine-time" / "results.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--objectives", "soflow"], "--objectives"),
        (["--only", "c"], "'c'"),
        (["c:objective.p=1"], "c:objective.p=1"),
        (["b:objective.q=1"], "objective.q"),
        (["b:data.flip=true"], "data.flip"),
    ],
)
def test_wrong_use_is_one_line(arguments, word, tmp_path, capfd):
    file = tmp_path / "variants.yaml"
    file.write_text("a:\nb: {objective: {p: 0}}\n")
    assert main.run(["compare", "digits", "--variants", str(file), *arguments]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert word in line


def test_only_and_objectives_need_the_right_partner(tmp_path, capfd):
    assert main.run(["compare", "digits", "--only", "a"]) == 2
    assert "--variants" in capfd.readouterr().err
    with pytest.raises(InputError, match="variants"):
        comparison.compare("digits", tmp_path, ["soflow"], variants={"a": {}})

"""Damaged and malicious files are read or rejected in one line, and their text is escaped.

The attacks in support/hostile.py run with a few cases each, or with thousands if marked slow.
"""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from soflow.config import read_recipe
from soflow.data import sources
from soflow.errors import RunError
from soflow.run.checkpoint import VERSION
from soflow.run.folder import RunFolder
from soflow.system.records import Count, Record
from support import hostile
from support.commands import assert_fails
from support.small_data import pixels
from support.whole_runs import add_figures

EVIL = ('<script>alert(1)</script>"><img src=x onerror=1>', "\x1b[31mred\n$\\foo$")
ATTACKS = {
    "configurations": lambda count, folder: hostile.attack_configuration(count),
    "YAML files": hostile.attack_yaml,
    ".npz files": hostile.attack_npz,
    "safetensors files": hostile.attack_safetensors,
    "checkpoints": hostile.attack_checkpoints,
    "images": hostile.attack_images,
    "indices of latents": lambda count, folder: hostile.attack_latents(count, folder / "latents"),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow's warnings on damaged images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ATTACKS)
def test_damaged_files_are_read_or_rejected_in_one_line(name, tmp_path):
    count = 30 if name == "configurations" else 100  # other attacks are far cheaper
    assert ATTACKS[name](count, tmp_path) >= count


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_thousands_of_damaged_files(name, tmp_path):
    tried = ATTACKS[name](5000, tmp_path)
    assert tried >= 5000
    add_figures(**{f"hostile {name}": tried})


# JSON


DEEP = "[" * 100_000


def test_json_with_another_structure_is_damaged(tmp_path):
    class Number(Record):
        a: Count

    for text in (DEEP, "[1]", '{"a": ' + "9" * 5000 + "}", "\x00", '{"a"', '{"a": -1}', "{}"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RunError, match=r"a\.json is damaged"):
            Number.read(tmp_path / "a.json")


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a trained run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize(
    "data",
    [
        {"class_names": 7},
        {"class_names": [1, 2]},
        {"encoder": {"name": "x", "sclae": 1}},
        {"encoder": {"name": "x", "scale": "1", "shift": 0, "size": 8, "channels": 3}},
        {"encoder": [1]},
    ],
)
def test_a_wrong_data_json_is_rejected(data, run, inside):
    (run / "data.json").write_text(json.dumps(data))
    assert_fails(
        inside("sample", run, "--num", 1, "--out", run / "x.png"), 1, "data.json is damaged"
    )


# Reports


class Elements(HTMLParser):
    """Collects the elements of a page with their attribute names, and its text."""

    def __init__(self):
        super().__init__()
        self.elements, self.texts = set(), []

    def handle_starttag(self, tag, attributes):
        self.elements.add((tag, *sorted(name for name, _ in attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def elements_of(page):
    parser = Elements()
    parser.feed(page)
    parser.close()
    return parser.elements, " ".join(parser.texts)


def evaluation(evil, checkpoint):
    names = (
        "distance",
        "kernel_distance",
        "inception_score",
        "precision",
        "recall",
        "density",
        "coverage",
        "recognized",
    )
    figures = {
        **dict.fromkeys(names, 1.0),
        "distance_spread": None,
        "spatial_distance": None,
        "reliable": True,
    }
    of = {"dataset": evil, "split": evil, "count": 5}
    row = {
        **figures,
        "weights": evil,
        "sampler": evil,
        "nfe": 1,
        "distance_at_real_count": 1.0,
        "milliseconds_per_sample": 1.0,
    }
    return {
        "checkpoint": checkpoint, "metric": f"FD-{evil}", "num": 5,
        "features": {"name": evil, "checksum": evil},
        "reference": {**of, "points": 3},
        "rows": [row, {**row, "sampler": "renoise"}, {**row, "sampler": "heun", "nfe": 64}],
        "real": {**figures, **of, "warnings": [evil], "reference": of},
        "diagnostics": {evil: 1.0}, "warnings": [evil], "versions": {evil: evil},
        "machine": {"device": evil, "processor": evil, "threads": 1}, "seeds": [0, 1],
    }  # fmt: skip


def test_names_in_a_run_are_escaped_in_its_report(run, inside):
    from soflow.config import dump

    checkpoint = max(path.name for path in (run / "checkpoints").glob("step-*"))
    lines = (run / "metrics.jsonl").read_text().splitlines()

    def report(evil, where):
        names = [f"{evil}{i}" for i in range(10)]
        data = {"name": evil, "count": 1437, "fingerprint": evil, "class_names": names}
        (run / "data.json").write_text(json.dumps(data))
        (run / "evaluation.json").write_text(json.dumps(evaluation(evil, checkpoint)))
        more = {f"{evil}_mse": 1.0, f"FD-{evil}": 2.0, evil: 3.0}
        (run / "metrics.jsonl").write_text(
            "\n".join(json.dumps({**more, **json.loads(line)}) for line in lines)
        )
        config = read_recipe(str(run)).model_copy(update={"description": evil})
        (run / "config.yaml").write_text(f"version: {VERSION}\n{dump(config)}")
        renamed = run.rename(run.with_name(where))
        result = inside("report", renamed)
        renamed.rename(run)
        assert result.returncode == 0, result.stderr
        return elements_of((run / "report.html").read_text())

    usual, _ = report("plain", "usual")
    for evil in EVIL:
        found, texts = report(evil, evil.replace("/", "|"))
        assert found == usual
        assert evil.splitlines()[0] in texts
    for strange in ({"nfe": EVIL[0]}, {"distance": EVIL[0]}, {"nfe": None}, {"distance": None}):
        values = evaluation("plain", checkpoint)
        values["rows"][0] |= strange
        (run / "evaluation.json").write_text(json.dumps(values))
        assert_fails(inside("report", run), 1, "evaluation.json is damaged")
    (run / "evaluation.json").unlink()
    for line in (
        '{"step": 1, "loss": null}',
        '{"step": 1, "loss": 1, "x": []}',
        '{"step": "<b>", "loss": 1}',
        "[" * 10**5,
        '{"step": 1, "lo',
    ):  # like a last line after a crash
        (run / "metrics.jsonl").write_text(lines[0] + "\n" + line + "\n" + lines[1] + "\n")
        assert len(RunFolder(run).read_metrics()) == 2
    assert inside("report", run).returncode == 0


def test_an_evaluation_with_any_structure_is_shown_or_called_damaged(run, monkeypatch):
    from markupsafe import Markup

    from soflow.evaluation import report
    from soflow.evaluation.record import Evaluation
    from soflow.workflows.load import load

    file = run / "evaluation.json"
    file.write_text(json.dumps(evaluation("plain", "step-00000030")))
    model, data, shown = load(run).model, sources.load(read_recipe("digits").data, "test"), [0]
    monkeypatch.setattr(report, "image", lambda figure: Markup(""))

    def work():
        values = Evaluation.read(file)
        shown[0] += 1
        subject = report.Subject(
            "run", model, data, [], values, "", 1.0, torch.device("cpu"), (), ("renoise", 1)
        )
        report.tiles(subject), report.quality(values), report.cost(subject)
        report.comparisons([subject, subject])

    hostile.attack_json(300, file, work)
    assert shown[0] > 20


def test_names_in_a_comparison_are_escaped_on_its_page():
    from soflow.comparison.page import page
    from soflow.comparison.record import Comparison

    def elements(evil):
        values = evaluation(evil, "step-00000030")
        names = ("seconds_per_step", "peak_bytes", "flops_per_sample", "parameters", "rounds")
        cost = {**dict.fromkeys(names, 1), "one_step_samples_per_second": 1.0}
        cost |= {"step_ratio": [1, 1, 1], "memory_ratio": [1, 1, 1]}
        points = [{"step": step, "seconds": step, "distance": 1} for step in (1, 2)]
        curve = {"sampler": "renoise", "nfe": 1, "num": 5, "points": points}
        run = {"folder": evil, "seed": 0, "seconds": 1, "rows": values["rows"], "curves": [curve]}
        objectives = {evil: {"steps": 1, "cost": cost, "runs": [run]}}
        about = {"recipe": evil, "overrides": [evil], "budget": "steps", "base": evil}
        results = {**values, **about, "batch_size": 1, "seeds": [0], "objectives": objectives}
        picture = Image.fromarray(pixels(1)[0])
        return elements_of(page(Comparison.model_validate(results), {evil: picture}))[0]

    usual = elements("plain")
    for evil in EVIL:
        assert elements(evil) == usual


# The terminal


def test_no_control_characters_reach_the_terminal(inside, tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    assert len(inside("train", "digits", f"train.st{'e' * 10**5}ps").stderr) < 5000
    folder = tmp_path / f"a{evil}b"
    folder.mkdir()
    results = [
        inside("train", "images", f"data.path={folder}"),
        inside("train", f"{folder}/x.yaml"),
        inside("report", folder),
    ]
    (tmp_path / "mine.yaml").write_text('"\\e[2J": 1')
    results += [
        inside("train", tmp_path / "mine.yaml"),
        inside("train", "digits", f"{evil}=1"),
        inside("train", f"--{evil}"),
    ]
    for result in results:
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.isprintable()


def test_features_named_by_a_run_are_not_loaded_unasked(run, inside, tmp_path):
    from soflow.config import dump

    file = tmp_path / "features.pt"
    torch.jit.script(torch.nn.Flatten()).save(str(file))
    config = read_recipe(str(run), [f"evaluate.features={file}"])
    (run / "config.yaml").write_text(f"version: {VERSION}\n{dump(config)}")
    result = inside("evaluate", run, "--nfe", 1, "--num", 50)
    assert_fails(result, 2, "a program", "--features", str(file))

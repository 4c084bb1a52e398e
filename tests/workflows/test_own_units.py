"""Runs on tables sample, evaluate, write and report in the units of the columns."""

import csv
import logging

import numpy as np
import pytest
import torch

import soflow
from soflow.data.training_data import make_dataset
from soflow.errors import InputError
from soflow.evaluation.evaluate import EvaluationSettings
from soflow.evaluation.references import make_sample_scoring
from soflow.evaluation.sample_set import open_samples
from soflow.evaluation.tables import table
from soflow.system.progress import silent
from soflow.workflows.evaluate import evaluate, evaluate_samples
from soflow.workflows.sample import sample, sample_to_file
from soflow.workflows.sample_request import SampleRequest

TINY = ["network.width=8", "network.depth=1", "train.steps=2", "train.batch_size=32"]
COLUMNS = ("height", "weight, kg", "age")
SETTINGS = EvaluationSettings(num=300, nfe=(1,), weights=("ema",), samplers=("renoise",))


def write_table(file, scale=1.0, seed=0, count=200):
    """Three columns with different units, and a class for one row in four."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, 3)) * [10, 5, 1] + [170, 70, 40]
    kinds = ["rare" if i % 4 == 0 else "common" for i in range(count)]
    values[::4] += 3
    values *= scale
    with file.open("w", newline="") as stream:
        rows = ([*row, kind] for row, kind in zip(values.tolist(), kinds, strict=True))
        csv.writer(stream).writerows([[*COLUMNS, "label"], *rows])
    return file


def train(folder, *more, scale=1.0):
    folder.mkdir()
    data = write_table(folder / "people.csv", scale)
    out = soflow.train("table", folder / "run", [f"data.path={data}", *TINY, *more])
    return soflow.load(out.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("table") / "one")


def test_samples_have_the_units_and_names_of_the_columns(run, tmp_path):
    request = SampleRequest.of(run, 400)
    assert sample_to_file(run, request, tmp_path / "s.csv", silent)
    assert sample_to_file(run, request, tmp_path / "s.npz", silent)
    drawn = sample(run, request, silent).numpy()
    with (tmp_path / "s.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == [*COLUMNS, "label"]
    assert {row[3] for row in rows} == {"rare", "common"}
    written = np.array([row[:3] for row in rows], dtype=np.float32)
    assert np.array_equal(written, drawn)
    with np.load(tmp_path / "s.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], drawn)
        assert [run.class_names[i] for i in arrays["arr_1"]] == [row[3] for row in rows]
    # After two steps, samples are approximately N(mean, std) of the columns.
    assert drawn.mean(0) == pytest.approx([171, 71, 41], abs=2)
    assert drawn.std(0) == pytest.approx([10, 5, 1.7], rel=0.3)


@pytest.mark.parametrize(("name", "word"), [("s.gif", r"\.csv"), ("folder", r"\.csv")])
def test_file_types_unsuited_for_vectors_are_rejected(name, word, run, tmp_path):
    with pytest.raises(InputError, match=f"{name}.*{word}"):
        sample_to_file(run, SampleRequest.of(run, 4), tmp_path / name, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_csv_file_is_rejected_for_images(tiny_run, tmp_path):
    run = soflow.load(tiny_run)
    with pytest.raises(InputError, match=r"x\.csv.*a folder"):
        sample_to_file(run, SampleRequest.of(run, 4), tmp_path / "x.csv", silent)


def test_figures_do_not_depend_on_the_units_of_the_columns(run, tmp_path):
    large = train(tmp_path / "large", scale=1000.0)
    one, two = (evaluate(each, SETTINGS, silent) for each in (run, large))
    for a, b in ((one.rows[0], two.rows[0]), (one.real, two.real)):
        assert a.distance == pytest.approx(b.distance, rel=1e-3, abs=1e-5)
        assert a.sliced_wasserstein == pytest.approx(b.sliced_wasserstein, rel=1e-3)
        assert a.marginals == pytest.approx(b.marginals, rel=1e-3)
        assert (a.precision, a.recall) == (b.precision, b.recall)
    assert set(one.rows[0].marginals) == set(COLUMNS)
    assert one.wasserstein_points == 20  # every tenth is held out
    assert one.labels == "as frequent as in the reference"
    assert {"SW2", "marginals", "worst"} <= set(table(one)[0])


def test_several_seeds_average_the_marginals(run):
    settings = EvaluationSettings(
        num=300, nfe=(1,), weights=("ema",), samplers=("renoise",), seeds=(0, 1), baseline=False
    )
    row = evaluate(run, settings, silent).rows[0]
    single = [
        evaluate(run, EvaluationSettings(**{**vars(settings), "seeds": (i,)}), silent).rows[0]
        for i in (0, 1)
    ]
    for name in COLUMNS:
        each = [one.marginals[name] for one in single]
        assert row.marginals[name] == pytest.approx(sum(each) / 2)
    assert "sliced_wasserstein" in row.spread


def test_evaluating_a_drawn_table_equals_evaluating_the_run(run, tmp_path):
    """Also with a file of statistics, which stores the scaling of the columns."""
    file, reference = tmp_path / "s.csv", tmp_path / "r.npz"
    sample_to_file(run, SampleRequest.of(run, 300), file, silent)
    data = run.config.data.path
    found = evaluate_samples(file, "coordinates", data, progress=silent)
    settings = EvaluationSettings(
        num=300, nfe=(1,), weights=("ema",), samplers=("renoise",), labels="balanced",
        baseline=False,
    )  # fmt: skip
    expected = evaluate(run, settings, silent)
    assert found.rows[0].distance == pytest.approx(expected.rows[0].distance, rel=1e-3)
    assert found.rows[0].marginals == pytest.approx(expected.rows[0].marginals, rel=1e-3)

    from soflow.evaluation.reference_files import write_reference

    scorer = make_sample_scoring(open_samples(str(file)), "coordinates", data).scorer
    write_reference(reference, scorer.reference, scorer.features, scorer.about, (3,))
    again = evaluate_samples(file, "coordinates", str(reference), progress=silent)
    assert again.rows[0].distance == pytest.approx(found.rows[0].distance, rel=1e-5)


def test_image_features_are_rejected_for_tables(run):
    with pytest.raises(InputError, match="classifier"):
        evaluate(run, EvaluationSettings(features="classifier", num=20), silent)


def test_a_report_without_data_only_lacks_the_real_data(tmp_path, caplog):
    caplog.set_level(logging.INFO, "soflow")
    run = train(tmp_path / "moved")
    path, data = run.folder.path, tmp_path / "moved" / "people.csv"
    whole = soflow.report([path], tmp_path / "whole.html", silent).read_text()
    assert "not shown" not in whole
    data.rename(data.with_name("elsewhere.csv"))
    caplog.clear()
    page = soflow.report([path], tmp_path / "page.html").read_text()
    assert "people.csv" in page
    assert "not shown" in page
    assert page.count("<img") == whole.count("<img")
    remarks = [record.getMessage() for record in caplog.records]
    assert len([remark for remark in remarks if "people.csv" in remark]) == 1


def test_plots_without_data_show_only_samples(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (64, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images)
    settings = ["data.source=arrays", f"data.path={tmp_path / 'set.npz'}", "data.num_classes=0"]
    small = ["network.width=16", "network.depth=1", "network.heads=2", "train.steps=1"]
    more = ["objective.guidance.scale=1", "train.batch_size=8"]
    out = soflow.train("digits", tmp_path / "run", [*settings, *small, *more])
    whole = soflow.report([out.path], tmp_path / "whole.html", silent).read_text()
    (tmp_path / "set.npz").unlink()
    page = soflow.report([out.path], tmp_path / "page.html", silent).read_text()
    assert page.count("<img") == whole.count("<img") - 1
    assert "set.npz" in page


def test_training_plots_the_columns_over_the_data(tmp_path, monkeypatch):
    seen = []

    def picture(samples, columns, names, real):
        from PIL import Image

        seen.append((samples, names, real))
        return Image.new("L", (4, 4))

    monkeypatch.setattr("soflow.workflows.sample_grid.picture", picture)
    run = train(tmp_path / "drawn", "train.sample_every=2")
    samples, names, real = seen[-1]
    assert names == COLUMNS
    data = make_dataset(run.config.data)
    torch.testing.assert_close(real, data.scaling.restore(data.samples(slice(2000))))
    assert float(samples[:, 0].mean()) == pytest.approx(170, abs=5)


def test_signals_can_be_drawn_evaluated_and_reported(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "waves.npy", random.standard_normal((90, 2, 32)) * [[5], [0.1]] + 3)
    small = ["network.width=16", "network.depth=1", "network.heads=2", "train.steps=1"]
    settings = [f"data.path={tmp_path / 'waves.npy'}", *small, "train.batch_size=8"]
    run = soflow.load(soflow.train("signals", tmp_path / "run", settings).path)
    found = evaluate(run, SETTINGS, silent)
    assert list(found.rows[0].marginals) == ["channel 0", "channel 1"]
    sample_to_file(run, SampleRequest.of(run, 50), tmp_path / "s.npz", silent)
    with np.load(tmp_path / "s.npz") as arrays:
        drawn = arrays["arr_0"]
    assert drawn.shape == (50, 2, 32)
    assert drawn.std((0, 2)) == pytest.approx([5, 0.1], rel=0.3)
    again = evaluate_samples(
        tmp_path / "s.npz", "coordinates", str(tmp_path / "waves.npy"), progress=silent
    )
    assert again.features.scaling == found.features.scaling
    assert "<img" in soflow.report([run.folder.path], progress=silent).read_text()
    with pytest.raises(InputError, match=r"\.csv"):
        sample_to_file(run, SampleRequest.of(run, 4), tmp_path / "s.csv", silent)

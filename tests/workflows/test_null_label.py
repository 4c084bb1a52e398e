"""Samples without a label need a model with a trained null label."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import soflow
from soflow.assemble import make_model, make_network, null_trained
from soflow.config import read_recipe
from soflow.data.dataset import DataRecord
from soflow.data.training_data import make_dataset
from soflow.errors import InputError
from soflow.evaluation.evaluate import diagnostics
from soflow.run.folder import RunFolder
from support.commands import assert_fails
from support.settings import TINY_DIT
from support.small_data import pixels, write_folder

FEW = [*TINY_DIT, "train.steps=1", "train.batch_size=8", "train.sample_every=0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"), pixels(8), names=("none", "dog"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run without guidance."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return soflow.train("digits", out, [*FEW, "objective.guidance.scale=1"]).path


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ([], True),  # guidance of scale 1.5 drops a tenth of the labels
        (["objective.guidance.scale=1"], False),
        (["objective.guidance.label_dropout=0"], False),
        (["objective.name=mean_flow"], True),
        (["objective.name=shortcut"], True),
        (["objective.name=flow_matching", "objective.guidance.scale=1"], False),
        (["objective.name=consistency"], False),
        (["data.num_classes=0", "objective.guidance.scale=1"], True),  # no other parameter changed
    ],
)
def test_dropped_labels_train_the_null_label(settings, trained):
    """Checks whether its row of the label table gets a gradient in a training step."""
    config = read_recipe("digits", [*TINY_DIT, *settings])
    network = make_network(config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model, classes = make_model(config, network), config.data.num_classes
    objective = config.objective.build()
    draws = objective.draw((64, 1, 8, 8), torch.Generator().manual_seed(0))
    labels = torch.arange(64) % classes if classes else None
    batch = soflow.Batch(torch.randn(64, 1, 8, 8), labels)
    objective(model, batch, draws, 0.5).total.backward()
    gradient = network.y_embedder.embedding_table.weight.grad[-1]
    assert bool(gradient.abs().sum() > 0) == trained
    assert model.null_trained == trained


def test_unlabelled_samples_train_the_null_label():
    class Some(DataRecord):
        unlabelled: int = 3

    config = read_recipe("digits", ["objective.guidance.scale=1"])
    data = {"name": "digits", "count": 8, "fingerprint": "?"}
    assert not null_trained(config, DataRecord(**data))
    assert null_trained(config, Some(**data))


def samplers(model, noise, labels):
    yield lambda: soflow.one_step(model, noise, labels)
    yield lambda: soflow.renoise(model, noise, [noise], labels)
    yield lambda: soflow.ode(model, noise, 2, labels)
    yield lambda: soflow.integrate_velocity(model, noise, 1, labels)


def test_every_sampler_rejects_an_untrained_null_label(labelled, tiny_run):
    for run, trained in ((labelled, False), (tiny_run, True)):
        model = soflow.load(run, device="cpu").model
        noise = torch.randn(2, *model.shape)
        for labels in (None, torch.tensor([3, 10])):
            for call in samplers(model, noise, labels):
                if trained:
                    assert call().shape == noise.shape
                else:
                    with pytest.raises(InputError, match=r"null label.*guidance\.scale"):
                        call()
        soflow.one_step(model, noise, torch.tensor([3, 9]))


def test_none_on_the_command_line_draws_without_a_label(labelled, tiny_run, tmp_path, inside):
    file = tmp_path / "none.npz"
    assert inside("sample", tiny_run, "-n", "4", "--labels", "none", "--out", file).returncode == 0
    with np.load(file) as drawn:
        assert set(drawn.files) == {"arr_0", "protocol"}
        without = drawn["arr_0"]
    run = soflow.load(tiny_run)
    request = soflow.SampleRequest(4, torch.full((4,), 10), *run.default_sampler)
    assert soflow.sample_to_file(run, request, tmp_path / "null.npz")
    with np.load(tmp_path / "null.npz") as drawn:
        assert np.array_equal(without, drawn["arr_0"])
    refused = inside("sample", labelled, "-n", "4", "--labels", "none", "--out", tmp_path / "x.npz")
    assert_fails(refused, 2, "null label", "objective.guidance.scale")
    run = soflow.load(labelled)
    with pytest.raises(InputError, match="null label"):
        soflow.sample_to_file(run, soflow.SampleRequest(4, None, "ode", 1), tmp_path / "x.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.npz", "null.npz"]


def test_a_class_named_none_is_that_class(photos, tmp_path):
    settings = [*FEW, f"data.path={photos}", "data.size=8"]
    run = soflow.load(soflow.train("images", tmp_path, settings).path)
    assert soflow.SampleRequest.of(run, 2, labels="none").labels.tolist() == [1, 1]


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A run on vectors, a third of them without a label, without guidance."""
    folder = tmp_path_factory.mktemp("partly")
    x = np.random.default_rng(0).standard_normal((60, 3), dtype=np.float32)
    np.savez(folder / "some.npz", x=x, labels=np.arange(60) % 3 - 1)
    few = ["network.width=16", "network.depth=1", "train.steps=1", "train.batch_size=8"]
    settings = [*few, "train.sample_every=0", f"data.path={folder / 'some.npz'}"]
    return soflow.train("vectors", folder / "run", settings).path


def test_a_run_on_partly_labeled_data_can_be_evaluated(partly):
    evaluation = soflow.evaluate(partly, soflow.EvaluationSettings(nfe=(1,), num=20))
    assert evaluation.diagnostics


def test_points_without_a_label_are_left_out_if_the_null_label_is_untrained(partly):
    model = soflow.load(partly, device="cpu").model
    dataset = make_dataset(RunFolder(partly).read_config().data)
    labelled = dataset.part(dataset.labels < 2, "labelled")
    settings, cpu = soflow.EvaluationSettings(num=60, seeds=(0,)), torch.device("cpu")
    untrained = replace(model, null_trained=False)
    found, expected = (diagnostics(untrained, x, settings, cpu) for x in (dataset, labelled))
    assert found == expected
    raw = replace(dataset, labels=dataset.labels.where(dataset.labels < 2, -1))
    assert diagnostics(untrained, raw, settings, cpu) == expected
    assert diagnostics(model, raw, settings, cpu) == diagnostics(model, dataset, settings, cpu)
    none = dataset.part(dataset.labels == 2, "unlabelled")
    assert diagnostics(untrained, none, settings, cpu) == {}


def test_sample_files_mark_unlabeled_samples_like_data(partly, tmp_path):
    run = soflow.load(partly, device="cpu")
    request = soflow.SampleRequest.of(run, 4, labels=[1, None])
    soflow.sample_to_file(run, request, tmp_path / "some.npz")
    assert np.load(tmp_path / "some.npz")["arr_1"].tolist() == [1, -1, 1, -1]
    soflow.sample_to_file(run, request, tmp_path / "some.csv")
    lines = (tmp_path / "some.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in lines] == ["label", "1", "", "1", ""]

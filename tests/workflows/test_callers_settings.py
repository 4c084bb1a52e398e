"""Public functions do not depend on global settings and do not change them."""

import logging
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import soflow
from soflow.comparison import cost
from soflow.comparison.measure import Measurement
from soflow.errors import InputError
from soflow.evaluation.pictures import png
from support.callers import changes, odd_settings, snapshot
from support.settings import TINY_DIT
from support.watching import at_each_step, stop_at

FEW = [
    *TINY_DIT, "train.steps=4", "train.batch_size=8", "train.sample_every=2", "evaluate.num=20",
    "evaluate.num_while_training=10", "evaluate.nfe=[1]", "checkpoint.every=2",
]  # fmt: skip
COMPARED = [text for text in FEW if not text.startswith("train.sample_every")]
#: With randomness in the network and in the data.
UNET = [
    "data.num_classes=0", "data.augment=0.5", "objective.guidance.scale=1", "network.name=unet",
    "network.model_channels=8", "network.blocks=1", "network.channel_mult=[1]",
    "network.attention=[]", "network.dropout=0.3", "train.steps=2", "train.batch_size=8",
    "evaluate.every=1", "evaluate.num_while_training=10", "evaluate.features=coordinates",
]  # fmt: skip


def weights_of(folder):
    return load_file(max(folder.checkpoints.iterdir()) / "model.safetensors")


def figures(evaluation):
    clock = {"milliseconds_per_sample": None}
    return [row.model_copy(update=clock) for row in evaluation.rows]


def train(run, out):
    return weights_of(soflow.train("digits", out / "run", UNET))


def train_on_own_data(run, out):
    data = torch.linspace(-1, 1, 32, dtype=torch.float32, device="cpu").view(16, 2)
    settings = ["network.width=16", "network.depth=1", "train.steps=2", "train.batch_size=8"]
    folder = soflow.train("vectors", out / "run", settings, data=(data, [0, 1] * 8))
    return weights_of(folder)


def load(run, out):
    return soflow.load(run).model.net.state_dict()


def sample(run, out):
    return soflow.load(run).sample(4, [3, 7], nfe=2)


def request(run, out):
    loaded = soflow.load(run)
    request = soflow.SampleRequest.of(loaded, 4, draw="random", seed=3)
    return torch.cat([soflow.sample(loaded, request).flatten(), request.labels])


def sample_to_file(run, out):
    loaded = soflow.load(run)
    soflow.sample_to_file(loaded, soflow.SampleRequest.of(loaded, 4), out / "four.npz")
    return (out / "four.npz").stat().st_size


def evaluate(run, out):
    settings = soflow.EvaluationSettings(features="coordinates", samplers=("renoise", "ode"))
    return figures(soflow.evaluate(run, settings))


def evaluate_samples(run, out):
    return figures(soflow.evaluate_samples("digits:test", "digits", "digits:train"))


def evaluate_loaded(run, out):
    return figures(soflow.load(run).evaluate(features="coordinates", samplers=("ode",)))


def report(run, out):
    return len(soflow.report(run, out / "page.html").read_bytes()) > 1000


def save(run, out):
    return sorted(file.name for file in soflow.load(run).save(out / "model").rglob("*"))


def compare(run, out):
    found = soflow.compare(
        "digits", out / "compare", ["soflow", "mean_flow"], 1, overrides=COMPARED
    )
    return [figures(one) for objective in found.objectives.values() for one in objective.runs]


def pictures(run, out):
    shapes = [(4, 1, 8, 8), (4, 5, 8, 8), (4, 2), (4, 3), (4, 2, 9)]
    options = {"dtype": torch.float32, "device": "cpu"}
    return [png(soflow.picture(torch.zeros(shape, **options))) for shape in shapes]


CALLS = [
    train, train_on_own_data, load, sample, request, sample_to_file, evaluate, evaluate_samples,
    evaluate_loaded, report, save, compare, pictures,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return soflow.train("digits", tmp_path_factory.mktemp("runs") / "run", FEW).path


@pytest.fixture
def _costs(monkeypatch):
    """Replaces cost measurements by known values."""

    def bench(configs, rounds, progress, seconds):
        one = Measurement(
            seconds_per_step=1, peak_bytes=1, flops_per_sample=1, forward_flops_per_sample=1,
            parameters=1, peaks={"float32": 1}, flops_by_kind={"float32": 1},
            one_step_samples_per_second=1, bare_forward_ratio=1, device="cpu",
        )  # fmt: skip
        return {name: [one] * rounds for name in configs}

    monkeypatch.setattr(cost, "bench", bench)


def same(one, two):
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two


@pytest.mark.usefixtures("_costs")
@pytest.mark.parametrize("call", CALLS)
def test_results_do_not_depend_on_global_settings_and_settings_do_not_change(call, run, tmp_path):
    for name in ("usual", "odd", "again"):
        (tmp_path / name).mkdir()
    usual = call(run, tmp_path / "usual")  # this call also imports what it needs
    with odd_settings():
        before = snapshot()
        odd = call(run, tmp_path / "odd")
        assert changes(before, snapshot()) == []
    assert same(usual, odd)
    before = snapshot()
    call(run, tmp_path / "again")
    assert changes(before, snapshot()) == []


def fail(done):
    raise ZeroDivisionError


@pytest.mark.parametrize("progress", [at_each_step(fail), stop_at(1)])
def test_settings_are_restored_after_an_error(progress, run, tmp_path):
    loaded = soflow.load(run)
    request = soflow.SampleRequest.of(loaded, 1)
    calls = [
        lambda: soflow.train("digits", tmp_path / "run", UNET, progress),
        lambda: soflow.sample(loaded, request, progress),
        lambda: soflow.sample_to_file(loaded, request, tmp_path / "one.png", progress),
        lambda: soflow.report(run, tmp_path / "page.html", progress),
        lambda: soflow.evaluate(
            run, soflow.EvaluationSettings(features="coordinates"), at_each_step(fail)
        ),
    ]
    for call in calls:
        with odd_settings():
            before = snapshot()
            with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
                call()
            assert changes(before, snapshot()) == []


def test_silent_hides_all_but_warnings(run, tmp_path, capfd, monkeypatch):
    """This includes output of functions inside the call, if logging is configured."""
    shown, handler = [], logging.Handler()
    handler.emit = lambda record: shown.append(record.levelno)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    monkeypatch.setattr("soflow.system.progress.Lines", None)  # no other progress is created
    loaded = soflow.load(run)
    silent = {"progress": soflow.silent}
    data = [torch.zeros(2)] * 8
    settings = ["network.width=16", "network.depth=1", "train.steps=1", "train.batch_size=8"]
    soflow.train("vectors", tmp_path / "run", settings, soflow.silent, data=data)
    settings = soflow.EvaluationSettings(features="coordinates", samplers=("ode",))
    soflow.evaluate(run, settings, **silent)
    soflow.evaluate_samples("digits:test", "digits", "digits:train", **silent)
    soflow.report(run, tmp_path / "page.html", **silent)
    loaded.sample(1, **silent)
    soflow.sample_to_file(loaded, soflow.SampleRequest.of(loaded, 1), tmp_path / "1.png", **silent)
    assert [level for level in shown if level < logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


def test_random_states_of_python_and_numpy_are_kept(tmp_path):
    """The dataset uses them while it is read."""

    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            random.random()
            np.random.random()  # noqa: NPY002
            return torch.full((2,), float(i))

    settings = ["network.width=16", "network.depth=1", "train.steps=1", "train.batch_size=8"]
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    soflow.train("vectors", tmp_path, settings, data=Drawing())
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


@pytest.mark.parametrize("progress", [None, True, 3])
def test_a_progress_that_is_not_callable_is_named(progress, run, tmp_path):
    with pytest.raises(InputError, match="progress is"):
        soflow.load(run).sample(1, progress=progress)
    with pytest.raises(InputError, match="progress is"):
        soflow.train("digits", tmp_path / "run", UNET, progress)

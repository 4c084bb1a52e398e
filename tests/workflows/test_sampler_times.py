"""Times of the samplers `renoise` and `ode`, from Python, the command line and evaluations."""

import json

import pytest
import torch

import soflow
from soflow.drawing import noise_of_samples
from soflow.errors import InputError
from soflow.evaluation.record import Evaluation
from support.settings import TINY_DIT

SETTINGS = [
    *TINY_DIT, "train.steps=4", "train.batch_size=8", "train.sample_every=0", "evaluate.num=20",
    "optimizer.lr=1e-2", "optimizer.warmup=0",
]  # fmt: skip
TIMES = (1.0, 0.75, 0.25, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("times") / "run"
    return soflow.train("digits", folder, SETTINGS, progress=soflow.silent).path


def test_jumps_end_at_the_times(run):
    """Compares with the solution function, applied by hand."""
    loaded, labels = soflow.load(run, device="cpu"), torch.tensor([3, 7])
    model = loaded.model
    (x,) = noise_of_samples(5, 0, 2, 1, model.shape, torch.device("cpu"))
    with torch.no_grad():
        for t, s in ((1.0, 0.75), (0.75, 0.25), (0.25, 0.0)):
            x = model.solution(x, torch.full((2,), t), torch.full((2,), s), labels)
    found = loaded.sample(
        2, labels=[3, 7], sampler="ode", times=TIMES, seed=5, progress=soflow.silent
    )
    assert torch.allclose(found, x, atol=1e-6)


def test_even_times_change_nothing(run):
    loaded = soflow.load(run, device="cpu")
    for sampler in ("renoise", "ode"):
        even = loaded.sample(3, sampler=sampler, nfe=2, progress=soflow.silent)
        given = loaded.sample(3, sampler=sampler, times=[1, 0.5, 0], progress=soflow.silent)
        late = loaded.sample(3, sampler=sampler, times=[1, 0.9, 0], progress=soflow.silent)
        assert torch.equal(even, given)
        assert not torch.equal(even, late)


def test_the_command_line_draws_the_same_samples(run, tmp_path, inside):
    import numpy as np

    out = tmp_path / "s.npz"
    asked = ("-n", "2", "--sampler", "ode", "--times", "1,0.75,0.25,0", "--out", out)
    assert inside("sample", run, *asked).returncode == 0
    loaded = soflow.load(run)
    request = soflow.SampleRequest.of(loaded, 2, sampler="ode", times=TIMES)
    soflow.sample_to_file(loaded, request, tmp_path / "again.npz", soflow.silent)
    drawn, again = (np.load(file) for file in (out, tmp_path / "again.npz"))
    assert np.array_equal(drawn["arr_0"], again["arr_0"])
    protocol = json.loads(str(drawn["protocol"]))
    assert (protocol["times"], protocol["nfe"]) == (list(TIMES), 3)


def test_evaluations_use_and_record_the_times(run):
    def evaluated(**settings):
        return soflow.evaluate(
            run,
            soflow.EvaluationSettings(
                num=20, samplers=("ode",), weights=("raw",), features="coordinates", **settings
            ),
            soflow.silent,
        )

    late, even, default = (
        evaluated(times=(1, 0.9, 0)),
        evaluated(times=(1, 0.5, 0)),
        evaluated(nfe=(2,)),
    )
    assert [(row.sampler, row.nfe) for row in late.rows] == [("ode", 2)]
    assert (late.times, default.times) == ((1.0, 0.9, 0.0), None)
    assert even.rows[0].distance == default.rows[0].distance != late.rows[0].distance
    assert Evaluation.model_validate_json(late.model_dump_json()) == late


@pytest.mark.parametrize(
    "times", [(), (1,), (1, 0.5), (0.9, 0), (1, 0.5, 0.5, 0), "10", (1, "x", 0)]
)
def test_wrong_times_are_rejected(times, run):
    with pytest.raises(InputError, match="times"):
        soflow.SampleRequest.of(soflow.load(run), 2, times=times)
    with pytest.raises(InputError, match="times"):
        soflow.EvaluationSettings(times=times)


def test_the_number_of_evaluations_follows_from_the_times(run):
    assert soflow.SampleRequest.of(soflow.load(run), 2, times=TIMES).nfe == 3
    with pytest.raises(InputError, match="times"):
        soflow.SampleRequest.of(soflow.load(run), 2, nfe=2, times=TIMES)
    with pytest.raises(InputError, match="times"):
        soflow.EvaluationSettings(nfe=(1, 2), times=TIMES)

"""Samplers accept labels and noise in all common types, and can be exported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import soflow
from soflow.drawing import sample_many
from soflow.errors import InputError
from soflow.noising import LinearNoising
from soflow.parameterization import EulerParameterization
from soflow.solution import FlowModel

SHAPE, CLASSES = (1, 8, 8), 10


def make_model():
    """Returns a DiT without zero weights."""
    torch.manual_seed(0)
    net = soflow.DiT(SHAPE, patch=4, width=32, depth=1, heads=2, num_classes=CLASSES).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    net.requires_grad_(False)
    return FlowModel(
        net,
        noising=LinearNoising(),
        parameterization=EulerParameterization(),
        shape=SHAPE,
        num_classes=CLASSES,
    )


@pytest.fixture(scope="module")
def model():
    return make_model()


def noise(count=3):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


SAMPLERS = {
    "one_step": soflow.one_step,
    "renoise": lambda model, x, labels: soflow.renoise(model, x, [x, x], labels),
    "ode": lambda model, x, labels: soflow.ode(model, x, 2, labels),
    "heun": lambda model, x, labels: soflow.integrate_velocity(model, x, 2, labels),
}
LABELS = {
    "list": [1, 2, 3],
    "tuple": (1, 2, 3),
    "range": range(1, 4),
    "numpy": np.array([1, 2, 3]),
    "numpy bytes": np.array([1, 2, 3], np.uint8),
    "int32": torch.tensor([1, 2, 3], dtype=torch.int32),
    "uint8": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "mixed": [np.int32(1), 2, torch.tensor(3)],
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_labels_can_have_any_integer_type(sampler, model):
    expected = SAMPLERS[sampler](model, noise(), torch.tensor([1, 2, 3]))
    assert not torch.allclose(expected, SAMPLERS[sampler](model, noise(), torch.tensor([3, 2, 1])))
    for kind, labels in LABELS.items():
        drawn = SAMPLERS[sampler](model, noise(), labels)
        torch.testing.assert_close(drawn, expected, rtol=0, atol=0, msg=kind)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_minus_one_is_not_a_class(sampler, model):
    expected = SAMPLERS[sampler](model, noise(), [1, CLASSES, 3])
    assert torch.equal(SAMPLERS[sampler](model, noise(), [1, -1, 3]), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_converted_to_the_precision_of_the_weights(sampler, model):
    expected = SAMPLERS[sampler](model, noise(), [1, 2, 3])
    for given in (noise().double(), noise().numpy(), noise().double().numpy()):
        drawn = SAMPLERS[sampler](model, given, [1, 2, 3])
        assert drawn.dtype == torch.float32
        torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    half = SAMPLERS[sampler](model, noise().half(), [1, 2, 3])
    torch.testing.assert_close(
        half, SAMPLERS[sampler](model, noise().half().float(), [1, 2, 3]), rtol=0, atol=0
    )


def test_many_samples_take_a_list_of_labels(model):
    labels = [i % CLASSES for i in range(12)]
    drawn = sample_many(model, 12, labels, "ode", 1, seed=0, batch_size=5)
    expected = sample_many(model, 12, torch.tensor(labels), "ode", 1, seed=0, batch_size=5)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"\[12\], not \[3\]"):
        sample_many(model, 12, [1, 2, 3], "ode", 1, seed=0)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ("cat", "'cat'"),
        (["cat", "dog", "fox"], "'cat'"),
        ([1.0, 2.0, 3.0], "1.0"),
        (torch.tensor([1.0, 2.0, 3.0]), "float32"),
        (torch.tensor([True, True, False]), "bool"),
        ([None, 1, 2], "None"),
        ([1, 2], r"\[3\], not \[2\]"),
        ([[1], [2, 3]], "integers"),
        ([1, 2, 11], "0 .. 9"),
        ([-2, 2, 3], "0 .. 9"),
    ],
)
def test_unusable_labels_are_named_in_the_error(labels, named, model):
    with pytest.raises(InputError, match=named):
        soflow.one_step(model, noise(), labels)


def test_unusable_noise_is_named_in_the_error(model):
    with pytest.raises(InputError, match="int64"):
        soflow.one_step(model, torch.zeros(3, *SHAPE, dtype=torch.int64), [1, 2, 3])


def test_labels_for_a_model_without_classes_are_rejected():
    net = soflow.MLP((2,), width=8, depth=1)
    model = FlowModel(
        net, noising=LinearNoising(), parameterization=EulerParameterization(), shape=(2,)
    )
    with pytest.raises(InputError, match="no classes"):
        soflow.one_step(model, torch.zeros(1, 2), [1])


class OneStep(torch.nn.Module):
    """The module that an application exports."""

    def __init__(self, model):
        super().__init__()
        self.model, self.net = model, model.net

    def forward(self, noise, labels=None):
        return soflow.one_step(self.model, noise, labels)


def given(count, with_labels):
    return (noise(count), torch.arange(count)) if with_labels else (noise(count),)


def assert_exports(model, with_labels, strict):
    """Checks that an exported program draws any number of samples."""
    batch = torch.export.Dim("batch", min=1, max=512)
    example = given(3, with_labels)
    program = torch.export.export(
        OneStep(model), example, dynamic_shapes=tuple({0: batch} for _ in example), strict=strict
    )
    asked = given(7, with_labels)
    torch.testing.assert_close(program.module()(*asked), soflow.one_step(model, *asked))


def assert_compiles(model):
    """Checks that the module compiles to one graph."""
    compiled = torch.compile(OneStep(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given(3, True)), soflow.one_step(model, *given(3, True)))


@pytest.mark.parametrize("with_labels", [False, True])
def test_one_step_is_exported_for_any_number_of_samples(with_labels, model):
    assert_exports(model, with_labels, strict=False)


def test_one_step_is_traced_from_its_code():
    """Traces in another process, because checks of annotations cannot be traced."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import test_sampling_from_python as test
for with_labels in (False, True):
    test.assert_exports(test.make_model(), with_labels, strict=True)
test.assert_compiles(test.make_model())
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]

"""A FlowModel can be copied, cast, exported and compiled like any torch module."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import soflow

CLASSES = 3
KINDS = ("dit", "in_context", "unet", "mlp")


def make(kind, cond_shape=(), **more):
    """Returns a small model whose network has no zero weights."""
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "cond_shape": cond_shape, **more}
    if kind == "dit":
        network = soflow.DiT((1, 8, 8), patch=4, width=32, depth=1, heads=2, **options)
    elif kind == "in_context":
        network = soflow.InContextDiT((1, 8, 8), patch=4, width=32, depth=1, heads=2, **options)
    elif kind == "unet":
        network = soflow.UNet((1, 8, 8), 8, (1, 2), blocks=1, attention=(4,), **options)
    else:
        network = soflow.MLP((4,), width=16, depth=1, **options)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    shape = (4,) if kind == "mlp" else (1, 8, 8)
    network.requires_grad_(False).eval()
    return soflow.FlowModel(network, shape, CLASSES, cond_shape)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def conditioned(kind):
    """The MLP takes a vector as condition, the other networks a map."""
    cond_shape = (2,) if kind == "mlp" else (2, 8, 8)
    return make(kind, cond_shape).conditioned(normal(5, *cond_shape))


def scaled(kind):
    """A model whose network takes guidance scales."""
    network = make(kind, takes_guidance=True).net
    shape = (4,) if kind == "mlp" else (1, 8, 8)
    return soflow.FlowModel(
        network, shape, CLASSES, guidance=soflow.DrawnGuidance(1.5, max_scale=4.0)
    )


MODELS = {
    **{kind: lambda kind=kind: make(kind) for kind in KINDS},
    **{f"{kind} cond": lambda kind=kind: conditioned(kind) for kind in KINDS},
    **{f"{kind} scales": lambda kind=kind: scaled(kind) for kind in KINDS},
    "mlp guided": lambda: scaled("mlp").guided([1.5, 2, 2.5, 3, 3.5], (0.2, 0.8)),
}


def saved(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1], None])
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_draws_the_same_samples(name, labels):
    model = MODELS[name]()
    noise = normal(5, *model.shape)
    expected = soflow.one_step(model, noise, labels)
    assert expected.abs().sum() > 0
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), saved(model)):
        assert other.net is not model.net
        assert torch.equal(soflow.one_step(other, noise, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_a_cast_model_draws_nearly_the_same_samples(name, dtype):
    model = MODELS[name]()
    noise = normal(5, *model.shape)
    expected = soflow.one_step(model, noise, [0, 1, 2, 0, 1])
    cast = copy.deepcopy(model).to(dtype)
    if name.endswith("cond"):
        assert cast.net.cond.dtype == dtype
    found = soflow.one_step(cast, noise, [0, 1, 2, 0, 1])
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


class Drawing(torch.nn.Module):
    """The module that an application exports: draws samples in one step."""

    def __init__(self, model):
        super().__init__()
        self.model, self.net = model, model.net

    def forward(self, noise, labels=None, cond=None):
        model = self.model if cond is None else self.model.conditioned(cond)
        return soflow.one_step(model, noise, labels)


def inputs(model, count, labels):
    """Noise, and labels and conditions if the model takes them."""
    given = {"noise": normal(count, *model.shape)}
    if labels:
        given["labels"] = torch.arange(count) % CLASSES
    if model.cond_shape:
        given["cond"] = normal(count, *model.cond_shape)
    return given


TAKES_COND = {"dit": (2, 8, 8), "in_context": (2, 8, 8), "unet": (2, 8, 8), "mlp": (2,)}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("cond", [False, True])
@pytest.mark.parametrize("kind", TAKES_COND)
def test_an_exported_program_draws_any_number_of_samples(kind, cond, labels):
    model = make(kind, TAKES_COND[kind] if cond else ())
    batch, example = torch.export.Dim("batch", min=1, max=512), inputs(model, 3, labels)
    program = torch.export.export(
        Drawing(model), (), example, dynamic_shapes={name: {0: batch} for name in example},
        strict=False,
    )  # fmt: skip
    for count in (7, 1):
        asked = inputs(model, count, labels)
        torch.testing.assert_close(program.module()(**asked), Drawing(model)(**asked))


def assert_compiles():
    """Checks that sampling and the network each compile to one graph."""
    for name, make_model in MODELS.items():
        model = make_model()
        noise, labels = normal(5, *model.shape), torch.arange(5) % CLASSES
        expected = soflow.one_step(model, noise, labels)
        whole = torch.compile(Drawing(model), backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(noise, labels), expected, msg=name)
        torch._dynamo.reset()
        network = torch.compile(model.net, backend="eager", fullgraph=True)
        inner = soflow.FlowModel(network, model.shape, CLASSES, guidance=model.guidance)
        torch.testing.assert_close(soflow.one_step(inner, noise, labels), expected, msg=name)
        torch._dynamo.reset()


def test_sampling_and_networks_are_compiled():
    """Compiles in another process, because checks of annotations cannot be traced."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_composable as test; "
    command = [sys.executable, "-c", program + "test.assert_compiles()", str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]

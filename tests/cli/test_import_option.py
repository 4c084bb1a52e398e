"""`--import MODULE` registers the user's objectives and networks before a command runs."""

import sys

import pytest

from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from support.commands import assert_fails

MODULE = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from soflow import NETWORKS, OBJECTIVES, Draws, Losses, Setting, Term


@OBJECTIVES.register("denoise")
@dataclass(frozen=True)
class Denoise:
    """f(x_1, 1, 0) is trained towards the data."""

    samplers: ClassVar[tuple[str, ...]] = ("renoise",)
    whole_network: ClassVar[bool] = False

    power: Annotated[float, Setting("power of the distance", gt=0)] = 2.0

    def draw(self, shape, generator):
        noise, zeros = torch.randn(*shape, generator=generator), torch.zeros(shape[0])
        return Draws(noise, zeros + 1, zeros, zeros.bool(), n_flow_matching=0)

    def __call__(self, model, batch, draws, progress):
        x = model.solution(draws.noise, draws.t, draws.s, batch.labels)
        loss = (x - batch.data).abs().pow(self.power).flatten(1).mean(1)
        term = Term(loss, loss.detach(), torch.ones_like(loss), {"t": draws.t})
        return Losses(loss.mean(), {"loss": loss.detach()}, {"denoise": term})


@NETWORKS.register("linear")
class Linear(nn.Module):
    def __init__(self, shape, num_classes=0, bias: Annotated[bool, Setting("add a bias")] = True):
        super().__init__()
        self.layer = nn.Linear(shape[0] + 2, shape[0], bias)

    def forward(self, x, t, s, labels=None):
        return self.layer(torch.cat([x, t[:, None], s[:, None]], dim=1))
'''
SMALL = [
    "objective.name=denoise",
    "network.name=linear",
    "train.batch_size=16",
    "train.log_every=2",
    "checkpoint.every=2",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with modules. Registries and imports are restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (OBJECTIVES, NETWORKS):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    before = set(sys.modules)
    (tmp_path / "toy_parts.py").write_text(MODULE)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("toy_", "broken")):
            del sys.modules[name]


def test_an_imported_module_trains_resumes_and_samples(folder, inside):
    train = ["train", "moons", *SMALL, "--out", "run"]
    result = inside(*train, "train.steps=2", "--import", "toy_parts", "objective.power=1.5")
    assert result.returncode == 0, result.stderr
    text = (folder / "run" / "config.yaml").read_text()
    (folder / "mine.yaml").write_text(text.replace("steps: 2", "steps: 4"))
    result = inside("--import=toy_parts", "train", "mine.yaml", "--out", "other")
    assert result.returncode == 0, result.stderr
    assert (folder / "other" / "checkpoints" / "step-00000004").is_dir()
    again = inside("train", "--import", "toy_parts", "run")
    assert again.returncode == 0, again.stderr
    sampled = inside("sample", "run", "--num", "3", "--import", "toy_parts", "--out", "x.npz")
    assert sampled.returncode == 0, sampled.stderr
    printed = inside("recipes", "mine.yaml", "--import", "toy_parts")
    assert "power: 1.5" in printed.stdout
    assert "# power of the distance" in printed.stdout


def test_a_configuration_alone_never_imports_code(folder, inside):
    (folder / "mine.yaml").write_text("objective: {name: denoise}\n")
    result = inside("train", "mine.yaml", "--out", "run")
    assert_fails(result, 2, "denoise", "--import")
    assert "toy_parts" not in sys.modules
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_like_this\n", ["nothing_like_this", "broken.py, line 1"]),
        ("\nx = 1 / 0\n", ["ZeroDivisionError", "broken.py, line 2"]),
        ("def f(:\n", ["SyntaxError", "broken.py"]),
        ("raise SystemExit('done')\n", ["SystemExit", "done"]),
        (
            "from soflow import NETWORKS\n@NETWORKS.register('dit')\nclass A: ...\n",
            ["network 'dit'", "soflow.networks.dit"],
        ),
    ],
)
def test_an_error_in_the_module_is_one_line(code, words, folder, inside):
    (folder / "broken.py").write_text(code)
    assert_fails(inside("recipes", "--import", "broken"), 2, "--import broken", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--import", "toy_missing"], ["--import toy_missing", "No module named 'toy_missing'"]),
        (["--import", "toy_parts.py"], ["toy_parts.py", "module"]),
        (["--import"], ["--import", "needs"]),
        (["--import="], ["--import", "needs"]),
        (["--import", "--help"], ["--import", "needs"]),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(arguments, words, folder, inside):
    assert_fails(inside("recipes", *arguments), 2, *words)


def test_help_shows_the_option(inside):
    assert "--import" in inside("--help").stdout
    for command in ("train", "sample", "import"):
        assert "--import MODULE" in inside(command, "--help").stdout

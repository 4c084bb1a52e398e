"""A new objective, network or data source is one file and one registration."""

import importlib
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import torch
from torch import nn

import soflow
from soflow.config import read_recipe
from soflow.config.reading import fields
from soflow.config.sections import section_of
from soflow.errors import InputError
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.sampling import one_step
from soflow.system.registry import Registry, Setting
from soflow.times import LogitNormal
from support.commands import assert_fails

TOYS = """
from dataclasses import dataclass
from typing import Annotated, ClassVar
import torch
from torch import nn
from soflow.data.dataset import Dataset
from soflow.data.registry import SOURCES
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.objectives.base import Draws, Term, losses
from soflow.system.registry import Setting

@OBJECTIVES.register("toy")
@dataclass(frozen=True)
class Regression:
    samplers: ClassVar[tuple[str, ...]] = ("ode",)
    whole_network: ClassVar[bool] = False
    power: Annotated[float, Setting("of the error", gt=0)] = 2.0
    def draw(self, shape, generator):
        noise, t = torch.randn(shape, generator=generator), torch.ones(shape[0])
        return Draws(noise, t, 0 * t, t < 0, n_flow_matching=0)
    def __call__(self, model, batch, draws, progress):
        f = model.solution(draws.noise, draws.t, draws.s, batch.labels)
        error = (f - batch.data).abs().pow(self.power).mean(1)
        return losses(toy=Term(error, error.detach(), torch.ones_like(error), {"t": draws.t}))

@NETWORKS.register("toy")
class Line(nn.Module):
    def __init__(self, shape, num_classes, hidden: Annotated[int, Setting("width", gt=0)] = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0], hidden), nn.Linear(hidden, shape[0]))
    def forward(self, x, t, s, labels=None):
        return self.layers(x)

@SOURCES.register("toy")
def toy(config, split):
    rows = torch.linspace(0, 1, 64)[:, None].repeat(1, *config.shape)
    return Dataset("toy", split, rows, torch.arange(64) % 2, ("low", "high"))
"""
RECIPE = """
data: {source: toy, shape: [3], num_classes: 2}
network: {name: toy, hidden: 4}
objective: {name: toy, power: 1}
train: {steps: 4, batch_size: 8, log_every: 2, sample_every: 0}
checkpoint: {every: 2, keep_last: 9}
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The recipe of toys. Its module `my_toys` can be imported but is not imported yet."""
    (tmp_path / "my_toys.py").write_text(TOYS)
    (tmp_path / "toys.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "toys.yaml"
    sources = sys.modules.get("soflow.data.registry")
    for registry in (OBJECTIVES, NETWORKS, *([sources.SOURCES] if sources else [])):
        registry.entries.pop("toy", None)
    sys.modules.pop("my_toys", None)


def train_again_from_the_middle(train, folder):
    """Trains, damages the last checkpoint, resumes. Returns the checkpoint before and after."""
    train()
    last = folder / "checkpoints" / "step-00000004" / "model.safetensors"
    whole = last.read_bytes()
    last.write_bytes(b"damaged")
    train()
    return whole, last.read_bytes()


def test_toys_take_at_most_forty_lines():
    assert len(TOYS.strip().splitlines()) <= 40


def test_toys_train_resume_and_sample_from_python(toys, tmp_path):
    importlib.import_module("my_toys")
    folder = tmp_path / "run"
    before, after = train_again_from_the_middle(lambda: soflow.train(toys, folder), folder)
    assert before == after
    run = soflow.load(folder, device="cpu")
    assert (run.config.network.hidden, run.config.objective.power) == (4, 1.0)
    assert type(run.model.net).__name__ == "Line"
    assert one_step(run.model, torch.randn(5, 3)).shape == (5, 3)
    assert run.class_names == ("low", "high")


def test_a_registered_network_may_have_tensors_that_are_not_saved(monkeypatch, tmp_path):
    class Buffered(soflow.MLP):
        def __init__(self, shape, num_classes):
            super().__init__(shape, num_classes=num_classes)
            self.register_buffer("scale", torch.full((2,), 2.0), persistent=False)
            self.plain = torch.ones(2)

        def forward(self, x, t, s, labels=None):
            return super().forward(x, t, s, labels) * self.scale * self.plain

    monkeypatch.setitem(NETWORKS.entries, "buffered", Buffered)
    few = ["network.name=buffered", "train.steps=2", "train.sample_every=1"]
    run = soflow.train("moons", tmp_path / "run", few, progress=soflow.silent)
    state = torch.get_rng_state()
    loaded = soflow.load(run.path, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.model.net.scale.tolist() == [2.0, 2.0]
    assert loaded.sample(3, progress=soflow.silent).isfinite().all()


def test_toys_train_resume_and_sample_from_the_command_line(toys, tmp_path, inside):
    folder = tmp_path / "run"

    def train():
        result = inside("--import", "my_toys", "train", toys, "--out", folder)
        assert result.returncode == 0, result.stderr

    before, after = train_again_from_the_middle(train, folder)
    assert before == after
    out = tmp_path / "points.npz"
    result = inside("--import", "my_toys", "sample", folder, "--num", 6, "--out", out)
    assert result.returncode == 0, result.stderr
    assert out.is_file()


def test_a_configuration_alone_never_imports_a_module(toys, inside):
    assert_fails(inside("train", toys, "--out", "run"), 2, "'toy'", "--import")
    assert "my_toys" not in sys.modules


def test_a_registry_lists_the_known_names():
    registry = Registry("animal")
    registry.register("cat")(nn.Linear)
    assert list(registry) == ["cat"]
    assert "cat" in registry
    assert [1] not in registry
    with pytest.raises(InputError, match=r"animal 'dog'.* cat"):
        registry["dog"]


def test_a_name_is_registered_once_but_a_module_can_be_reloaded():
    registry = Registry("network")

    def define(name):
        return type(name, (nn.Module,), {"__module__": "mine"})

    registry.register("net")(define("Net"))
    with pytest.raises(InputError, match="'net'"):
        registry.register("net")(define("Other"))
    again = define("Net")
    registry.register("net")(again)
    assert registry["net"] is again


def test_a_registry_checks_required_attributes():
    with pytest.raises(InputError, match=r"'mine'.*whole_network"):
        OBJECTIVES.register("mine")(type("Mine", (), {"samplers": ("ode",)}))
    assert "mine" not in OBJECTIVES


def test_a_registry_lists_modules_outside_the_package():
    assert OBJECTIVES.modules() == []
    registry = Registry("network")
    registry.register("linear")(nn.Linear)
    assert registry.modules() == [nn.Linear.__module__]


@dataclass(frozen=True)
class Component:
    """A component with settings of every type."""

    shape: tuple[int, ...]
    needed: Annotated[int, Setting("needed", ge=1, lt=9)]
    bare: LogitNormal
    kind: Annotated[Literal["a", "b"], Setting("kind")] = "a"
    sizes: Annotated[tuple[int, ...], Setting("sizes", gt=0)] = (1, 2)
    times: Annotated[LogitNormal, Setting("times")] = LogitNormal(0.5, 2.0)
    others: LogitNormal = field(default_factory=lambda: LogitNormal(0.0, 1.0))
    limit: Annotated[float | None, Setting("limit", le=2)] = None


SECTION = section_of(Component)
LEAST = {"needed": 1, "bare": {"mean": 0, "std": 1}}


def test_settings_become_keys_with_their_defaults_and_types():
    section = SECTION(**LEAST, times={"mean": 1}, sizes=[4])
    built = section.build(shape=(2,), num_classes=7)
    standard = LogitNormal(0.0, 1.0)
    assert built == Component((2,), 1, standard, "a", (4,), LogitNormal(1.0, 2.0), standard)
    assert isinstance(built.times.mean, float)
    assert "shape" not in SECTION.model_fields
    assert SECTION.model_fields["times"].description == "times"


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"bare": LEAST["bare"]}, ("needed",)),
        ({**LEAST, "needed": 0}, ("needed",)),
        ({**LEAST, "needed": 9}, ("needed",)),
        ({**LEAST, "kind": "c"}, ("kind",)),
        ({**LEAST, "sizes": [3, 0]}, ("sizes", 1)),
        ({**LEAST, "times": {"mean": 0, "std": 0}}, ("times", "std")),
        ({**LEAST, "bare": {"mean": 0}}, ("bare", "std")),
        ({**LEAST, "times": {"mean": 0, "std": 1, "skew": 1}}, ("times", "skew")),
        ({**LEAST, "limit": 3}, ("limit",)),
        ({**LEAST, "shape": [2]}, ("shape",)),
    ],
)
def test_settings_out_of_range_and_unknown_keys_are_errors(values, place):
    with pytest.raises(ValueError, match="1 validation error") as error:
        SECTION.model_validate(values)
    assert error.value.errors()[0]["loc"] == place


def test_every_setting_of_a_registered_component_is_a_key(monkeypatch):
    monkeypatch.setitem(OBJECTIVES.entries, "component", Component)
    keys = {key for key, _ in fields(names={"objective": "component"})}
    assert {"objective.needed", "objective.times.std", "objective.others.mean"} <= keys
    assert "objective.p" not in keys


def test_a_part_of_a_section_keeps_the_defaults_of_the_chosen_objective(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: {name: mean_flow, guidance: {scale: 2}, times: {std: 2}}")
    guidance, times = read_recipe(str(recipe)).objective.build().guidance, LogitNormal(-0.4, 2.0)
    assert (guidance.scale, guidance.mix, guidance.decay_time) == (2.0, 1.0, 1.0)
    assert read_recipe(str(recipe)).objective.build().times == times


def test_printed_recipes_name_the_choices_and_describe_nested_settings(inside):
    lines = inside("recipes", "digits").stdout.splitlines()
    (objective,) = [line for line in lines if line.strip().startswith("name: jump_flow")]
    assert all(name in objective for name in OBJECTIVES)
    (decay,) = [line for line in lines if "decay_time:" in line]
    about = section_of(OBJECTIVES["jump_flow"], "jump_flow").model_fields["guidance"].annotation
    assert about.model_fields["decay_time"].description in decay

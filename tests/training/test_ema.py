"""EMA weights: decay, warm-up and precision."""

import math

import pytest
import torch

import soflow
from soflow.comparison.compare import chosen_settings
from soflow.config import read_recipe, recipe_names
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.training.ema import Ema
from soflow.training.signals import Stopped
from support.settings import TINY_DIT
from support.watching import stop_at
from support.whole_runs import MLP


def test_ema_weights_are_the_weighted_sum_of_past_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    often, seldom = (Ema(network, decay=0.9, every=n, float64=n > 1, rampup=0) for n in (1, 3))
    expected_often, expected_seldom = 1.0, 1.0
    for step, value in enumerate([2.0, -1.0, 5.0, 4.0, 0.5, 3.0]):
        with torch.no_grad():
            network.weight.fill_(value)
        often.update(step)
        seldom.update(step)
        expected_often = 0.9 * expected_often + 0.1 * value
    for value in (5.0, 3.0):  # steps 3 and 6
        expected_seldom = 0.9**3 * expected_seldom + (1 - 0.9**3) * value
    assert float(often.average["weight"]) == pytest.approx(expected_often, rel=1e-6)
    assert float(seldom.average["weight"]) == pytest.approx(expected_seldom, rel=1e-12)
    assert seldom.average["weight"].dtype == torch.float64


def test_float64_ema_weights_keep_steps_that_float32_loses():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = Ema(network, decay=0.99999, float64=True, rampup=0)
    with torch.no_grad():
        network.weight.fill_(1.001)
    ema.update(0)
    # Near 1, float32 has a spacing of 6e-8.
    assert float(ema.average["weight"] - 1) == pytest.approx(1e-8, rel=1e-3)


def average_of(**settings):
    return Ema(torch.nn.Linear(1, 1), **settings)


def half_life(ema, step):
    """Returns the number of steps after which updates like that after `step` halve a weight."""
    return ema.every * math.log(0.5) / math.log(ema.decay_at(step))


@pytest.mark.parametrize("every", [1, 16])
def test_the_half_life_is_a_fraction_of_the_steps_then_that_of_the_decay(every):
    ema = average_of(decay=0.99, every=every, rampup=0.05)
    last = math.log(0.5) / math.log(0.99)  # 69 steps
    for step in (40, 100, 1000, 1379, 1380, 5000, 10**6):
        assert half_life(ema, step) == pytest.approx(min(0.05 * step, last))
    assert ema.decay_at(10**6) == 0.99**every  # as without a warm-up
    off = average_of(decay=0.99, every=every, rampup=0)
    assert off.decay_at(0) == off.decay_at(100) == 0.99**every
    assert average_of(decay=0.0).decay_at(5) == 0


def test_the_first_update_forgets_the_initial_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(network)
    with torch.no_grad():
        network.weight.fill_(7.0)
    ema.update(0)
    assert float(ema.average["weight"]) == 7.0


def test_recipes_except_the_papers_have_a_warm_up():
    ratios = {name: read_recipe(name).ema.rampup for name in recipe_names()}
    papers = {name for name in ratios if name.startswith(("imagenet256", "cifar10"))}
    assert {name for name, ratio in ratios.items() if ratio == 0} == papers
    assert {ratio for name, ratio in ratios.items() if name not in papers} == {0.05}


def test_samples_of_a_short_run_are_not_noise(tmp_path):
    """With the decay of 0.9999 alone, 97 % of the initial weights would remain."""
    few = ["train.steps=300", "train.batch_size=64", "train.sample_every=0", "optimizer.warmup=0"]
    soflow.train("digits", tmp_path, [*TINY_DIT, *few, "ema.decay=0.9999"])
    drawn = {}
    for weights in ("ema", "raw"):
        model = soflow.load(tmp_path, weights, device="cpu").model
        noise = torch.randn(64, *model.shape, generator=torch.Generator().manual_seed(0))
        drawn[weights] = soflow.one_step(model, noise, torch.arange(64) % 10)
    pairs = {"noise": noise, "raw": drawn["raw"]}
    like = {
        name: float(torch.corrcoef(torch.stack([drawn["ema"].flatten(), other.flatten()]))[0, 1])
        for name, other in pairs.items()
    }
    assert like["noise"] < 0.7
    assert like["raw"] > 0.95


def test_a_comparison_without_an_ema_warm_up_continues_without_it(tmp_path):
    folder = RunFolder(tmp_path / "soflow-seed-0")
    folder.path.mkdir()
    started = {"precision": "fp32", "compile": False}
    folder.write_config(read_recipe("moons", ["ema.rampup=0"]).model_copy(update=started))
    configs = {
        name: read_recipe("moons", [f"objective.name={name}"])
        for name in ("soflow", "flow_matching")
    }
    for given, ratio in (((), 0), (("ema.rampup",), 0.05)):  # set explicitly: rejected below
        chosen, _ = chosen_settings(configs, {name: {} for name in configs}, tmp_path, given)
        assert {config.ema.rampup for config in chosen.values()} == {ratio}


def test_a_run_without_an_ema_warm_up_continues_without_it(tmp_path):
    """This also holds if the command names its recipe, which has another default now."""
    settings = [*MLP, "train.steps=6", "train.batch_size=16", "train.sample_every=0"]
    soflow.train("moons", tmp_path / "whole", [*settings, "ema.rampup=0"])
    older = tmp_path / "older"
    with pytest.raises(Stopped):
        soflow.train("moons", older, [*settings, "ema.rampup=0"], progress=stop_at(3))
    file = older / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("  rampup: 0.0\n", ""))
    assert file.read_text() != text
    assert soflow.load(older).config.ema.rampup == 0
    assert read_recipe(str(older)).ema.rampup == 0
    with pytest.raises(Stopped):
        soflow.train("moons", older, settings, progress=stop_at(4))
    soflow.train("moons", older, settings)
    averages = [
        checkpoints(run / "checkpoints")[-1].weights("ema") for run in (tmp_path / "whole", older)
    ]
    assert all(averages[0][name].equal(averages[1][name]) for name in averages[0])

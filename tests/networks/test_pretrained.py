"""Velocities of the linear path from exact networks with other conventions."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import soflow
from soflow.errors import InputError
from soflow.networks.pretrained import times_of
from support.exact_networks import (
    MIXTURE,
    NORMAL,
    ExactDiffusion,
    ExactFlow,
    draw_data,
    exact_velocity,
)

DATA = pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])


def points():
    """Points and times away from the ends, in float64: (B, 3) and (B,)."""
    t = torch.linspace(0.03, 0.97, 95, dtype=torch.float64)
    noise = torch.randn(95, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (1 - t)[:, None] * 0.5 + t[:, None] * noise + 0.3 * noise.roll(1, 0), t


@DATA
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_velocity_of_an_exact_diffusion_is_exact(prediction, data):
    net = ExactDiffusion(prediction, data)
    velocity = soflow.VelocityOf(net, prediction, net.alphas_cumprod)
    x, t = points()
    torch.testing.assert_close(velocity(x, t), exact_velocity(x, t, data), rtol=1e-3, atol=1e-3)


@DATA
@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "sample"])
@pytest.mark.parametrize(("scale", "reverse"), [(1.0, False), (1000.0, False), (1.0, True)])
def test_the_velocity_of_an_exact_flow_is_exact(scale, reverse, prediction, data):
    net = ExactFlow(prediction, data, scale, reverse)
    velocity = soflow.VelocityOf(net, prediction, time_scale=scale, reversed_time=reverse)
    x, t = points()
    torch.testing.assert_close(velocity(x, t), exact_velocity(x, t, data), rtol=1e-4, atol=1e-4)


def test_timesteps_have_the_same_signal_to_noise_ratio():
    seen = []

    class Watching(nn.Module):
        def forward(self, z, timestep):
            seen.append((z, timestep))
            return z

    alphas = ExactDiffusion("epsilon", NORMAL).alphas_cumprod
    k = torch.tensor([0, 1, 17, 500, 998, 999])
    ratio = (1 / alphas[k] - 1).sqrt()  # sigma / a = t / (1 - t)
    t = (ratio / (1 + ratio)).float()
    x = torch.hypot(1 - t, t)[:, None].expand(-1, 2)
    soflow.VelocityOf(Watching(), "v_prediction", alphas)(x, t)
    torch.testing.assert_close(seen[0][1], k.float(), rtol=0, atol=2e-2)
    torch.testing.assert_close(seen[0][0], torch.ones_like(x))  # the variance is preserved


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_one_step_from_noise_gives_the_mean_of_the_data(prediction):
    net = ExactDiffusion(prediction, MIXTURE)
    velocity = soflow.VelocityOf(net, prediction, net.alphas_cumprod, margin=0.01)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    mean = sum(m * w for m, w in zip(MIXTURE[0], MIXTURE[2], strict=True))
    torch.testing.assert_close(x - velocity(x, torch.ones(50)), torch.full_like(x, mean),
                               rtol=0, atol=0.15)  # fmt: skip


def test_at_the_data_the_velocity_from_a_predicted_sample_is_finite():
    net = ExactDiffusion("sample", NORMAL)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    v = soflow.VelocityOf(net, "sample", net.alphas_cumprod)(x, torch.zeros(50))
    torch.testing.assert_close(v, exact_velocity(x, torch.zeros(50), NORMAL), rtol=0, atol=0.3)


def test_the_end_of_a_diffusion_without_signal_is_finite():
    alphas = torch.linspace(0.99, 0, 100)
    zero = nn.Module()
    zero.forward = lambda z, timestep: 0.5 * z
    for prediction in ("epsilon", "v_prediction", "sample"):
        v = soflow.VelocityOf(zero, prediction, alphas)(torch.ones(2, 3), torch.tensor([0.0, 1.0]))
        assert v.isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_integrating_the_velocity_draws_the_data(prediction):
    net = ExactDiffusion(prediction, MIXTURE)
    velocity = soflow.VelocityOf(net, prediction, net.alphas_cumprod)
    model = soflow.FlowModel(lambda x, t, s, labels: velocity(x, t, labels), (1,))
    generator = torch.Generator().manual_seed(0)
    drawn = soflow.integrate_velocity(model, torch.randn(4000, 1, generator=generator), 64)
    real = draw_data(4000, MIXTURE, generator)
    distance = (drawn[:, 0].sort().values - real.sort().values).abs().mean()
    assert distance < 0.1  # the distance between two real datasets is about 0.05


def test_half_precision_does_not_change_the_table_of_times():
    net = ExactDiffusion("epsilon", NORMAL)
    velocity = soflow.VelocityOf(net, "epsilon", net.alphas_cumprod)
    x, t = (
        torch.randn(3, 2),
        torch.tensor([0.25, 0.5, 0.875]),
    )  # exactly representable in half precision
    before = velocity.timestep(t)
    torch.testing.assert_close(velocity.half().timestep(t), before, rtol=0, atol=0)
    assert velocity(x.half(), t.half()).dtype == torch.float16


class Labelled(nn.Module):
    """Returns its labels, like a network that only embeds classes."""

    def __init__(self, wrap=lambda x: x):
        super().__init__()
        self.wrap = wrap

    def predicted(self, x, labels):
        labels = torch.full((len(x),), -5) if labels is None else labels
        return self.wrap(labels.view(-1, 1).expand_as(x).to(x.dtype))


class ByKeyword(Labelled):
    def forward(self, sample, timestep, other=None, class_labels=None):
        assert other is None
        return self.predicted(sample, class_labels)


class ByPosition(Labelled):
    def forward(self, x, t, c=None):
        return self.predicted(x, c)


class Required(Labelled):
    def forward(self, x, t, y):
        return self.predicted(x, y)


class Unlabelled(Labelled):
    def forward(self, x, t):
        return self.predicted(x, None)


X, T, Y = torch.zeros(3, 2), torch.rand(3), torch.tensor([4, 0, 2])


@pytest.mark.parametrize("kind", [ByKeyword, ByPosition, Required])
def test_labels_follow_the_convention_of_the_network(kind):
    velocity = soflow.VelocityOf(kind())
    assert velocity(X, T, Y)[:, 0].tolist() == [4, 0, 2]
    with_null = soflow.VelocityOf(kind(), null_label=7)
    assert with_null(X, T)[:, 0].tolist() == [7, 7, 7]


def test_without_a_null_label_a_network_is_called_without_labels():
    assert soflow.VelocityOf(ByKeyword())(X, T)[:, 0].tolist() == [-5, -5, -5]
    with pytest.raises(InputError, match="null_label"):
        soflow.VelocityOf(Required())(X, T)


def test_labels_for_a_network_without_classes_are_rejected():
    velocity = soflow.VelocityOf(Unlabelled())
    assert not velocity.takes_labels
    with pytest.raises(InputError, match="Unlabelled"):
        velocity(X, T, Y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, "more"),
        lambda x: SimpleNamespace(sample=x),
        lambda x: torch.cat([x, 0 * x - 1], dim=1),  # a learned variance
    ],
)
def test_the_prediction_is_found_in_the_output_of_the_network(wrap):
    assert soflow.VelocityOf(ByKeyword(wrap))(X, T, Y).tolist() == Y[:, None].expand(3, 2).tolist()


@pytest.mark.parametrize("wrap", [lambda x: x[:, :1], lambda x: x[:2], lambda x: {"out": x}])
def test_outputs_with_another_shape_are_rejected(wrap):
    with pytest.raises(InputError, match="ByKeyword"):
        soflow.VelocityOf(ByKeyword(wrap))(X, T, Y)


class DitLabels(nn.Module):
    """The label embedding of DiT, which drops labels during training."""

    def __init__(self, classes=4, dropout_prob=0.9):
        super().__init__()
        self.num_classes, self.dropout_prob = classes, dropout_prob
        self.embedding_table = nn.Embedding(classes + 1, 2)

    def token_drop(self, labels):
        return torch.full_like(labels, self.num_classes)

    def forward(self, labels):
        drop = self.training and self.dropout_prob > 0
        return self.embedding_table(self.token_drop(labels) if drop else labels)


class DitLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.y_embedder = DitLabels()

    def forward(self, x, t, y):
        return self.y_embedder(y)


def test_the_networks_own_label_dropout_is_disabled_and_its_null_label_known():
    net = DitLike().train()
    velocity = soflow.VelocityOf(net).train()
    y = torch.tensor([0, 1, 3])
    table = net.y_embedder.embedding_table.weight
    assert torch.equal(velocity(X, T, y), table[y])
    assert torch.equal(velocity(X, T), table[4].expand(3, 2))
    assert net.y_embedder.dropout_prob == 0.9  # the given network does not change
    assert torch.equal(net(X, T, y), table[4].expand(3, 2))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prediction": "score"}, "score"),
        ({"prediction": "v_prediction"}, "alphas_cumprod"),
        ({"prediction": "velocity", "alphas_cumprod": [0.9, 0.1]}, "velocity"),
        ({"prediction": "epsilon", "alphas_cumprod": [0.9, 0.1], "time_scale": 9.0}, "time_scale"),
        ({"prediction": "epsilon", "alphas_cumprod": [0.1, 0.9]}, "alphas_cumprod"),
        ({"prediction": "epsilon", "alphas_cumprod": [0.9]}, "alphas_cumprod"),
        ({"prediction": "epsilon", "alphas_cumprod": [1.9, 0.1]}, "alphas_cumprod"),
        ({"prediction": "epsilon", "margin": 0.0}, "margin"),
    ],
)
def test_wrong_settings_are_rejected(settings, named):
    with pytest.raises(InputError, match=named):
        soflow.VelocityOf(Unlabelled(), **settings)


def test_times_of_timesteps_follow_the_signal_to_noise_ratio():
    torch.testing.assert_close(times_of([0.5, 0.2]), torch.tensor([0.5, 2 / 3]))  # sigma / a: 1, 2

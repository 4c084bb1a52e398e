"""Turn a pretrained diffusion network into a one-step model.

First trains a small DiTTransformer2DModel of diffusers as a diffusion model of scikit-learn's 8x8
digits, as an example of a pretrained network. Then adds the second time, trains the network further
with SoFlow, and draws digits in one step. The same training from random weights shows how much the
pretraining helps.

    pip install soflow[latents]
    python examples/pretrained_to_one_step.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import soflow
from soflow.drawing import sample_many
from soflow.sampling import Sampler

SHAPE, CLASSES = (1, 8, 8), 10
SCHEDULER = DDPMScheduler(num_train_timesteps=1000)


def digits() -> soflow.Batch:
    """All 1,797 digits, in [-1, 1]."""
    source = load_digits()
    images = torch.from_numpy(source.images).float()[:, None] / 8 - 1
    return soflow.Batch(images, torch.from_numpy(source.target).long())


def make_network() -> DiTTransformer2DModel:
    """A diffusers network with one time and the class as inputs."""
    return DiTTransformer2DModel(
        sample_size=8,
        patch_size=4,
        in_channels=1,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=16,
        num_embeds_ada_norm=CLASSES,
        norm_num_groups=1,
    )


def random_batch(data: soflow.Batch, size: int) -> soflow.Batch:
    chosen = torch.randint(len(data), (size,))
    return data.rows(chosen)


def optimizer_of(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)


def pretrain(net: nn.Module, data: soflow.Batch, steps: int, batch_size: int) -> None:
    """Trains a diffusion network with v-prediction."""
    optimizer = optimizer_of(net, 2e-3)
    ema = soflow.Ema(net, decay=0.99)
    for step in range(steps):
        batch = random_batch(data, batch_size)
        noise = torch.randn_like(batch.data)
        k = torch.randint(SCHEDULER.config.num_train_timesteps, (batch_size,))
        noisy = SCHEDULER.add_noise(batch.data, noise, k)
        target = SCHEDULER.get_velocity(batch.data, noise, k)
        loss = functional.mse_loss(net(noisy, k, batch.labels).sample, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
    net.load_state_dict(ema.state_dict())


def train_one_step(network: nn.Module, data: soflow.Batch, steps: int, batch_size: int) -> None:
    """Trains F(x, t, s, labels) with SoFlow, from its current weights."""
    model = soflow.FlowModel(network, SHAPE, CLASSES)
    objective = soflow.SoFlow()
    optimizer = optimizer_of(network, 1e-3)
    ema = soflow.Ema(network, decay=0.99)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = random_batch(data, batch_size)
        draws = objective.draw(batch.data.shape, generator)
        objective(model, batch, draws, progress=step / steps).total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
    network.load_state_dict(ema.state_dict())


def distance(images: Tensor) -> float:
    """The Frechet distance to the digits, with the features of the digits classifier."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npz"
        np.savez(file, arr_0=pixels.numpy())
        return soflow.evaluate_samples(file, "digits", "digits").rows[0].distance


def main(
    pretraining: int = 400, steps: int = 200, batch_size: int = 64, num: int = 500
) -> dict[str, float]:
    """Trains and scores. Returns distances to the digits; smaller is better."""
    torch.manual_seed(0)
    data = digits()
    labels = torch.arange(num) % CLASSES

    found: dict[str, float] = {}

    def score(name: str, network: nn.Module, sampler: Sampler, nfe: int) -> None:
        model = soflow.FlowModel(network.eval(), SHAPE, CLASSES)
        found[name] = distance(sample_many(model, num, labels, sampler, nfe, seed=0))
        print(f"{name:32}{found[name]:8.2f}", flush=True)

    net = make_network()
    pretrain(net, data, pretraining, batch_size)

    # Convert to the velocity of the linear path, then add the second time.
    velocity = soflow.VelocityOf(net, "v_prediction", alphas_cumprod=SCHEDULER.alphas_cumprod)
    network = soflow.WithSecondTime(velocity)
    score("pretrained, 32 evaluations", network, "heun", 32)
    score("pretrained, one step", network, "renoise", 1)
    train_one_step(network, data, steps, batch_size)
    score("trained on, one step", network, "renoise", 1)

    scratch = soflow.WithSecondTime(soflow.VelocityOf(make_network(), time_scale=1000.0))
    train_one_step(scratch, data, steps, batch_size)
    score("from random weights, one step", scratch, "renoise", 1)
    return found


if __name__ == "__main__":
    main()

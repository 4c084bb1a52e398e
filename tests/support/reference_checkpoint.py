"""Generates checkpoints and YAML files of the reference implementation."""

import torch
import yaml

from soflow.interop.reference import import_checkpoint
from soflow.networks.dit import DiT

DIT_YAML = {
    "noising_type": "Trig",
    "coefficient_type": "Trig",
    "model_type": "DiT-B-4",
    "dataset_type": "digits",
    "data_size": 8,
    "velocity_loss_ratio": 0.5,
    "p": 0.9,
    "eps": "2e-2",  # YAML readers return a string for 2e-2
    "time_mean": [-0.1, -0.2, 0.3],
    "time_std": [1.1, 1.2, 1.3],
    "cfg_scale": 1.7,
    "mix_ratio": 0.4,
    "cfg_drop_rate": 0.2,
    "cfg_decay_time": 0.9,
    "l_schedule": "Cosine",
    "l_init_ratio": 0.5,
    "l_end_ratio": 0.01,
    "total_steps": 8,
    "ema_decay_rate": 0.95,
    "learning_rate": 2e-4,
    "betas": [0.8, 0.95],
    "weight_decay": 0.01,
    "batch_size": 32,
}

UNET_YAML = {
    "noising_type": "Linear",
    "coefficient_type": "Euler",
    "model_type": "UNet",
    "dataset_type": "digits",
    "velocity_loss_ratio": 0.0,
    "p": 0.75,
    "eps": 0.001,
    "time_mean": [-0.9, -4.0, -0.9],
    "time_std": [1.6, 1.6, 1.6],
    "cfg_scale": 1.0,
    "l_schedule": "Exponent",
    "l_init_ratio": 1.0,
    "l_end_ratio": 0.0003125,
    "total_steps": 8,
    "ema_decay_rate": 0.95,
    "learning_rate": 1e-3,
    "betas": [0.9, 0.999],
    "weight_decay": 0.0,
    "batch_size": 16,
}


def reference_content(**changes):
    """Returns the content of a small checkpoint of the reference implementation."""
    network = DiT((1, 8, 8), 10, 4, 48, 1, 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    sum(p.square().sum() for p in network.parameters() if p.requires_grad).backward()
    optimizer.step()
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    content = {
        "model": weights,
        "ema_model": dict(weights),
        "optimizer": optimizer.state_dict(),
        "finished_steps": 1,
    }
    return {**content, "finished_epochs": 0, **changes}


def write_reference(folder, content=None, settings=None):
    """Writes reference.pt and reference.yaml; returns their paths."""
    checkpoint, yaml_file = folder / "reference.pt", folder / "reference.yaml"
    torch.save(reference_content() if content is None else content, checkpoint)
    yaml_file.write_text(yaml.safe_dump(DIT_YAML if settings is None else settings))
    return checkpoint, yaml_file


def imported(folder, content=None, settings=None, **options):
    """Imports this checkpoint into the run directory `folder`/run."""
    files = write_reference(folder, content, settings)
    return import_checkpoint(*files, folder / "run", **{"heads": 4, **options})

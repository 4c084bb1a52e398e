"""The paper's recipes train for a few steps with their real components but smaller widths."""

import json

import torch

import soflow
from soflow.data.augment import AugmentPipe
from soflow.data.encoding import encode
from soflow.networks.unet import UNet
from support.small_data import make_vae, pixels, write_folder, write_parquet

FEW = ["train.steps=3", "train.batch_size=8", "train.log_every=1"]


def test_cifar10_with_unet_augmentation_and_float64_ema(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    seen = []
    real = AugmentPipe.__call__
    monkeypatch.setattr(
        AugmentPipe, "__call__", lambda self, *rest: seen.append(self.p) or real(self, *rest)
    )
    folder = write_parquet(tmp_path / "cifar", pixels(40, (32, 32, 3)))
    small = ["network.model_channels=16", "network.blocks=1", "ema.every=1", f"data.path={folder}"]
    out = soflow.train("cifar10", tmp_path / "run", [*small, *FEW])
    assert seen == [0.12] * 3
    assert len(out.read_metrics()) == 3
    loaded = soflow.load(out.path)
    assert isinstance(loaded.model.net, UNet)
    average = loaded.checkpoint.weights("ema")
    assert {tensor.dtype for name, tensor in average.items() if name.endswith("weight")} == {
        torch.float64
    }


def test_imagenet_on_latents_with_guidance(tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(40, (64, 64, 3)), names=tuple("abcd"))
    encode(str(photos), tmp_path / "latents", str(make_vae(tmp_path / "vae")), 64)
    small = ["network.width=32", "network.depth=2", "network.heads=2", "data.num_classes=4"]
    out = soflow.train(
        "imagenet256-xl2", tmp_path / "run", [*small, f"data.path={tmp_path / 'latents'}", *FEW]
    )
    metrics = out.read_metrics()
    assert {"flow_matching_mse", "consistency_mse"} <= metrics[-1].keys()
    config = out.read_config()
    assert (config.data.shape, config.guidance_scale) == ((4, 32, 32), 2.0)
    assert json.loads(out.data.read_text())["class_names"] == list("abcd")

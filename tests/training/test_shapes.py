"""Data of every shape can be trained, resumed bitwise and sampled."""

import pytest
import torch

import soflow
from soflow.data.dataset import Dataset
from soflow.data.registry import SOURCES
from soflow.workflows import train as training
from soflow.workflows.sample_request import SampleRequest
from support.resuming import train_and_resume

UNET = ["network.name=unet", "network.model_channels=16", "network.channel_mult=[1,2]"]
UNET += ["network.blocks=1", "network.attention=[4]"]
DIT = ["network.width=32", "network.depth=1", "network.heads=2", "network.patch=2"]
SHORT = ["train.steps=4", "train.batch_size=8", "train.log_every=2", "checkpoint.every=2"]
CASES = {
    "rectangles of five channels": ("[5,4,8]", DIT),
    "rectangles of five channels, unet": ("[5,4,8]", UNET),
    "rectangles, augmented": ("[2,8,12]", [*UNET, "data.augment=0.5"]),
    "signals": ("[2,16]", DIT),
    "one value": ("[1]", ["network.name=mlp", "network.width=16", "network.depth=1"]),
}


@pytest.fixture
def noise(monkeypatch):
    """A data source of random samples with the given shape, in two classes."""

    def load(config, split):
        rows = torch.randn(32, *config.shape, generator=torch.Generator().manual_seed(0))
        return Dataset("noise", split, rows, torch.arange(32) % 2, ("low", "high"))

    monkeypatch.setitem(SOURCES.entries, "noise", load)
    monkeypatch.setattr(training, "draw_samples", lambda *arguments: None)  # images
    return ["data.source=noise", "data.num_classes=2"]


@pytest.mark.parametrize("objective", ["soflow", "mean_flow"])
@pytest.mark.parametrize("case", CASES)
def test_data_of_every_shape_train_resume_and_are_sampled(case, objective, noise, tmp_path):
    shape, network = CASES[case]
    settings = [*noise, *SHORT, *network, f"data.shape={shape}", f"objective.name={objective}"]
    folder = train_and_resume(settings, tmp_path / "run")
    run = soflow.load(folder.path, "raw", device="cpu")
    samples = soflow.sample(run, SampleRequest.of(run, num=4, labels="high,low"))
    assert samples.shape == (4, *run.config.data.shape)
    assert samples.isfinite().all()

"""Runs on latents train, decode and show images."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import soflow as runs
from soflow.data.encoding import encode
from soflow.data.latents import LatentsPlan
from soflow.drawing import sample_many
from soflow.errors import InputError
from soflow.sampling import one_step
from soflow.workflows import sample as sample_files
from support.commands import assert_fails
from support.small_data import make_vae, pixels, write_folder

SMALL = [
    "network.width=32",
    "network.depth=1",
    "network.heads=2",
    "train.steps=2",
    "train.batch_size=8",
    "train.log_every=1",
]


@pytest.fixture(scope="module")
def run(latents, tmp_path_factory):
    """The paper's ImageNet recipe with a small DiT, on these latents."""
    out = tmp_path_factory.mktemp("runs") / "latents"
    settings = [
        f"data.path={latents}",
        "data.shape=[4,4,4]",
        "data.num_classes=2",
        "evaluate.num=20",
        *SMALL,
    ]
    settings.append("evaluate.features=coordinates")
    return runs.train("imagenet256-b2", out, settings).path


def test_samples_are_decoded_by_the_autoencoder_of_the_latents(run, vae):
    assert Image.open(run / "samples" / "step-00000002.png").size == (2 + 10 * 34, 2 + 4 * 34)
    loaded = runs.load(run)
    labels = torch.arange(5) % 2
    images = sample_many(loaded.model, 5, labels, "renoise", 1, seed=1, batch_size=2)
    assert images.shape == (5, 3, 8, 8)
    from soflow.drawing import noise_of_samples

    noise = noise_of_samples(1, 0, 5, 1, (4, 4, 4), torch.device("cpu"))[0]
    with torch.no_grad():
        expected = (
            AutoencoderKL.from_pretrained(vae)
            .decode(one_step(loaded.model, noise, labels) / 2 + 0.1)
            .sample
        )
    torch.testing.assert_close(images, expected.clamp(-1, 1), atol=1e-4, rtol=1e-4)


def test_commands_show_images_and_accept_class_names(run, photos, inside, tmp_path):
    done = inside("sample", run, "--labels", "Dog", "--num", 3, "--out", tmp_path / "dogs.npz")
    assert done.returncode == 0, done.stderr
    arrays = np.load(tmp_path / "dogs.npz")
    assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((3, 8, 8, 3), np.uint8)
    assert arrays["arr_1"].tolist() == [1, 1, 1]
    (tmp_path / "many").mkdir()
    assert inside("sample", run, "--num", 2, "--out", tmp_path / "many").returncode == 0
    assert [Image.open(file).size for file in sorted((tmp_path / "many").glob("*.png"))] == [
        (8, 8)
    ] * 2
    for reference in ((), ("--reference", photos)):
        done = inside("evaluate", run, "--num", 20, "--nfe", "1", *reference)
        assert done.returncode == 0, done.stderr
        results = json.loads((run / "evaluation.json").read_text())
        assert results["reference"]["dataset"] == ("pets" if reference else "pets, decoded")
        assert set(results["diagnostics"]) == {
            "solution_residual",
            "composition_gap",
            "one_step_error",
        }
    assert inside("report", run).returncode == 0
    page = (run / "report.html").read_text()
    assert "cat" in page
    assert "dog" in page


def test_another_copy_of_the_autoencoder_can_be_named_and_must_match(run, vae, tmp_path, inside):
    file = tmp_path / "x.npz"
    one = inside("sample", run, "--num", 2, "--out", file, "--vae", vae)
    assert one.returncode == 0, one.stderr
    wide = make_vae(tmp_path / "wide", latents=7)
    assert_fails(
        inside("sample", run, "--num", 2, "--vae", wide),
        2,
        "[7, 4, 4]",
        "[4, 4, 4]",
    )
    assert_fails(inside("sample", run, "--num", 2, "--vae", tmp_path / "no"), 2, "cannot be loaded")


def test_images_of_two_autoencoders_are_not_combined(run, vae, tmp_path, monkeypatch):
    """Parts are reused only if they have the same weights, scale and shift."""
    monkeypatch.setattr(sample_files, "PIECE", 2)
    other, copy = make_vae(tmp_path / "other", seed=1), shutil.copytree(vae, tmp_path / "copy")
    real, drawn = sample_files.sample_many, []

    def counted(stop, *arguments, **options):
        if len(drawn) == stop:
            raise KeyboardInterrupt
        drawn.append(options["start"])
        return real(*arguments, **options)

    for name, stop in (("", 1), (str(copy), 3), (str(other), None)):
        monkeypatch.setattr(sample_files, "sample_many", partial(counted, stop))
        with suppress(KeyboardInterrupt):
            request = sample_files.SampleRequest(8, None, "renoise", 1)
            sample_files.sample_to_file(runs.load(run, vae=name), request, tmp_path / "x.npz")
    assert drawn == [0, 2, 4, 0, 2, 4, 6]


def test_latents_of_images_without_classes_say_why_there_are_none(vae, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(8, (8, 8, 3)), names=())
    encode(str(photos), tmp_path / "set", str(vae), 8)
    settings = [f"data.path={tmp_path / 'set'}", "data.shape=[4,4,4]", *SMALL]
    with pytest.raises(InputError, match=r"data\.num_classes is 2.*photos has no class folders"):
        runs.train("imagenet256-b2", tmp_path / "run", [*settings, "data.num_classes=2"])


def test_a_run_cannot_resume_on_other_latents(run, photos, vae, latents, tmp_path):
    other = make_vae(tmp_path / "other", seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    encode(str(photos), tmp_path / "set", str(other), 8)
    with pytest.raises(InputError, match=r"encoder.*2\.0"):
        runs.train(str(run), run, [f"data.path={tmp_path / 'set'}"])
    with pytest.raises(InputError, match=r"data\.shape is \[4, 32, 32\].*\[4, 4, 4\]"):
        runs.train("imagenet256-b2", tmp_path / "run", [f"data.path={latents}", *SMALL])


def test_pictures_without_an_autoencoder_say_so(latents, tmp_path, capsys):
    """Training works without the autoencoder. Plots say why they do not show images."""
    plan = LatentsPlan.read(latents / "plan.json")
    copy = tmp_path / "set"
    copy.mkdir()
    for file in latents.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    plan.model_copy(update={"encoder": replace(plan.encoder, name="/gone/vae")}).write(
        copy / "plan.json"
    )
    settings = [f"data.path={copy}", "data.shape=[4,4,4]", "data.num_classes=2", *SMALL]
    out = runs.train("imagenet256-b2", tmp_path / "run", settings)
    assert "/gone/vae" in capsys.readouterr().err
    assert (out.samples / "step-00000002.png").is_file()

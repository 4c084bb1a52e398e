"""Latents from small autoencoders are encoded, cached and read."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from soflow.data import encoding
from soflow.data.autoencoder import load_autoencoder
from soflow.data.batches import Batches
from soflow.data.encoding import encode
from soflow.data.latents import LatentsPlan, load_latents
from soflow.data.shards import Index
from soflow.errors import InputError, RunError
from soflow.evaluation.pictures import to_uint8
from soflow.evaluation.report import real_by_class
from soflow.workflows.load import make_decoder
from support.small_data import make_tiny_vae, make_vae, pixels, write_folder


def in_order(photos):
    """The photos in the order of the folder, in [-1, 1]."""
    arrays = [np.asarray(Image.open(file)) for file in sorted(photos.rglob("*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def rows_of(path):
    return load_latents(str(path), "train").rows[torch.arange(40)]


@torch.no_grad()
def test_rows_are_the_posterior_of_diffusers(photos, vae, latents):
    posterior = AutoencoderKL.from_pretrained(vae).encode(in_order(photos)).latent_dist
    dataset = load_latents(str(latents), "train")
    assert dataset.shape == (4, 4, 4)
    mean, std = rows_of(latents).float().chunk(2, dim=1)
    torch.testing.assert_close(mean, posterior.mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(std, posterior.std, atol=1e-3, rtol=1e-3)
    assert (dataset.class_names, dataset.labels.tolist()) == (("cat", "dog"), [0] * 20 + [1] * 20)
    assert dataset.encoder.scale == 2.0
    assert dataset.encoder.shift == 0.1


def test_every_visit_draws_from_the_posterior(latents):
    """Compares two moments of z = (mean + std n - shift) scale over 1,000 visits."""
    dataset = load_latents(str(latents), "train")
    batches = Batches(dataset, 40, seed=3)
    order = [np.argsort(batches.indices(step)) for step in range(1000)]
    seen = torch.stack([batches.microbatch(step).data[rows] for step, rows in enumerate(order)])
    mean, std = rows_of(latents).float().chunk(2, dim=1)
    torch.testing.assert_close(
        seen.mean(0), (mean - 0.1) * 2, atol=6 * 2 * float(std.max()) / 1000**0.5, rtol=0
    )
    torch.testing.assert_close(seen.std(0), 2 * std, atol=0, rtol=0.15)
    assert torch.equal(batches.microbatch(5, 1, 2).data, batches.microbatch(5).data[1::2])


@torch.no_grad()
def test_decoding_inverts_the_scale(vae, latents):
    encoder = load_latents(str(latents), "train").encoder
    z = torch.randn(37, 4, 4, 4)
    expected = AutoencoderKL.from_pretrained(vae).decode(z / 2 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(
        make_decoder(encoder, None, torch.device("cpu"))(z), expected, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_autoencoders_without_a_posterior_and_of_other_widths(photos, tmp_path):
    tiny = make_tiny_vae(tmp_path / "tiny")
    encode(str(photos), tmp_path / "set", str(tiny), 8)
    mean, std = rows_of(tmp_path / "set").float().chunk(2, dim=1)
    expected = AutoencoderTiny.from_pretrained(tiny).encode(in_order(photos)).latents
    torch.testing.assert_close(mean, expected, atol=1e-3, rtol=1e-3)
    assert float(std.abs().max()) == 0
    wide = make_vae(tmp_path / "wide", channels=1, latents=7)
    encode(str(photos), tmp_path / "grey", str(wide), 4)
    assert load_latents(str(tmp_path / "grey"), "train").shape == (7, 2, 2)


def test_mirrored_images_are_separate_rows(vae, tmp_path, monkeypatch):
    photos = write_folder(tmp_path / "photos", pixels(10, (8, 8, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "items_of_a_shard", lambda count, item_bytes: 6)
        patch.setattr(encoding, "CHUNK", 3)  # two per shard
        encode(str(photos), tmp_path / "both", str(vae), 8, flip=True, batch_size=3)
    mirrored = tmp_path / "mirrored"
    for file in sorted(photos.rglob("*.png")):
        (mirrored / file.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            mirrored / file.parent.name / file.name
        )
    encode(str(photos), tmp_path / "plain", str(vae), 8)
    encode(str(mirrored), tmp_path / "turned", str(vae), 8)
    both = load_latents(str(tmp_path / "both"), "train")
    assert len(both) == 20
    assert torch.bincount(both.labels).tolist() == [10, 10]
    separate = torch.cat(
        [load_latents(str(tmp_path / name)).rows[torch.arange(10)] for name in ("plain", "turned")]
    )
    together = both.rows[torch.arange(20)]
    distance = torch.cdist(separate.float().flatten(1), together.float().flatten(1))
    assert float(distance.min(1).values.max()) < 1e-2  # all present, as 20 different rows
    assert sorted(distance.argmin(1).tolist()) == list(range(20))
    assert torch.equal(
        both.labels[distance.argmin(1)],
        load_latents(str(tmp_path / "plain"), "train").labels.repeat(2),
    )
    assert LatentsPlan.read(tmp_path / "both" / "plan.json").flip


def test_images_are_decoded_in_chunks_ahead_of_the_autoencoder(
    photos, vae, latents, tmp_path, monkeypatch
):
    """At most two chunks of a shard are in memory: one is decoded while the other is encoded."""
    order, started = [], {first: threading.Event() for first in range(0, 48, 8)}
    started[40].set()
    real_decode, real_encode = encoding.decode_rows, encoding.latents_of

    def decode(images, rows, *arguments):
        order.append(f"decode {len(rows)}")
        started[rows.start].set()
        return real_decode(images, rows, *arguments)

    def encode_chunk(*arguments):
        number = sum(one == "encode" for one in order)
        assert started[8 * (number + 1)].wait(10)
        order.append("encode")
        return real_encode(*arguments)

    monkeypatch.setattr(encoding, "decode_rows", decode)
    monkeypatch.setattr(encoding, "latents_of", encode_chunk)
    monkeypatch.setattr(encoding, "items_of_a_shard", lambda count, item_bytes: 40)
    monkeypatch.setattr(encoding, "CHUNK", 10)  # batches of 4: two of them
    assert encode(str(photos), tmp_path / "set", str(vae), 8, batch_size=4)
    assert order == ["decode 8"] + ["decode 8", "encode"] * 4 + ["encode"]
    torch.testing.assert_close(rows_of(tmp_path / "set"), rows_of(latents), atol=1e-3, rtol=1e-3)
    assert load_latents(str(tmp_path / "set"), "train").labels.tolist() == [0] * 20 + [1] * 20


def test_interrupted_encoding_resumes_and_processes_share_it(
    photos, vae, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not encode(str(photos), tmp_path / "set", str(vae), 8)
    with pytest.raises(InputError, match=r"data\.path=.*set"):
        load_latents(str(tmp_path / "set"), "train")
    kept = tmp_path / "set" / "shard-00001.npy"
    before = kept.stat().st_mtime_ns
    damaged = tmp_path / "set" / "shard-00003.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert encode(str(photos), tmp_path / "set", str(vae), 8)
    assert kept.stat().st_mtime_ns == before
    torch.testing.assert_close(rows_of(tmp_path / "set"), rows_of(latents), atol=1e-3, rtol=1e-3)
    made, expected = (Index.read(folder / "index.json") for folder in (tmp_path / "set", latents))
    assert made.model_copy(update={"checksums": expected.checksums}) == expected
    assert (tmp_path / "set" / "plan.json").read_text() == (latents / "plan.json").read_text()


def test_changed_images_stop_a_resumed_encoding(photos, vae, tmp_path, monkeypatch):
    """Count and names are equal; only sizes and times differ."""
    changing = shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not encode(str(changing), tmp_path / "set", str(vae), 8)
    write_folder(changing, pixels(40, (8, 8, 3), seed=1))
    with pytest.raises(InputError, match="set "):
        encode(str(changing), tmp_path / "set", str(vae), 8)


def test_a_damaged_shard_is_named_and_repaired(photos, vae, tmp_path):
    encode(str(photos), tmp_path / "set", str(vae), 8)
    expected = rows_of(tmp_path / "set")
    shard = tmp_path / "set" / "shard-00002.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 255
    shard.write_bytes(content)
    with pytest.raises(RunError, match=r"shard-00002\.npy is damaged"):
        load_latents(str(tmp_path / "set"), "train")
    encode(str(photos), tmp_path / "set", str(vae), 8)
    torch.testing.assert_close(rows_of(tmp_path / "set"), expected, atol=1e-3, rtol=1e-3)


def test_training_uses_the_shifted_and_scaled_posterior(latents):
    """Compares z = ((mean + std n) - shift) scale value by value, with the noise n of the visit."""
    dataset = load_latents(str(latents), "train")
    assert (dataset.encoder.shift, dataset.encoder.scale) == (0.1, 2.0)
    batches = Batches(dataset, 8, seed=1)
    mean, std = rows_of(latents)[torch.from_numpy(batches.indices(0))].float().chunk(2, dim=1)
    noise = batches.visit_noise(0, slice(None))
    torch.testing.assert_close(batches.microbatch(0).data, (mean + std * noise - 0.1) * 2.0)
    torch.testing.assert_close(
        dataset.samples(), (rows_of(latents).float().chunk(2, dim=1)[0] - 0.1) * 2.0
    )


def test_real_latents_are_shown_in_columns_by_class(latents):
    dataset = load_latents(str(latents), "train")
    shown = real_by_class(dataset, 2, rows=3)
    assert torch.equal(shown[0::2], dataset.samples(torch.tensor([0, 1, 2])))
    assert torch.equal(shown[1::2], dataset.samples(torch.tensor([20, 21, 22])))


def test_a_note_warns_of_latents_with_an_unusual_scale(photos, vae, tmp_path, caplog):
    config = json.loads((vae / "config.json").read_text())
    strange = make_vae(tmp_path / "strange")
    (strange / "config.json").write_text(json.dumps({**config, "scaling_factor": 200.0}))
    encode(str(photos), tmp_path / "set", str(strange), 8)
    caplog.set_level("INFO", "soflow")
    load_latents(str(tmp_path / "set"), "train")
    assert "scale 200.0" in caplog.messages[-1]


def test_a_wrong_autoencoder_or_size_is_rejected(photos, vae, tmp_path):
    for name in ("no/such/folder", str(photos)):
        with pytest.raises(InputError, match=name):
            load_autoencoder(name)
    make_vae(tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="UNet2DModel"):
        load_autoencoder(str(tmp_path / "odd"))
    with pytest.raises(InputError, match=r"9x9.*8x8"):
        encode(str(photos), tmp_path / "x", str(vae), 9)
    with pytest.raises(InputError, match=r"data\.source is 'digits'"):
        encode("digits", tmp_path / "x", str(vae), 8)


def test_decoding_of_stored_uint8_is_exact():
    from soflow.data.dataset import Dataset

    array = pixels(4)
    assert np.array_equal(
        to_uint8(Dataset("x", "", torch.from_numpy(array), None).samples()), array
    )

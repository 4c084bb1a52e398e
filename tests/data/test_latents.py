"""Latents: encoded by small autoencoders made here, cached, trained on, decoded."""

import json
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial

import h5py
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
from soflow.sampling import one_step, sample_many
from soflow.workflows import runs
from soflow.workflows import sample as sample_files
from support.commands import assert_fails
from support.small_data import make_tiny_vae, make_vae, pixels, write_folder

SMALL = [
    "network.width=32",
    "network.depth=1",
    "network.heads=2",
    "train.steps=2",
    "train.batch_size=8",
    "train.log_every=1",
]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return make_vae(tmp_path_factory.mktemp("vae") / "kl")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos") / "pets", pixels(40, (8, 8, 3)))


@pytest.fixture(scope="module")
def latents(photos, vae, tmp_path_factory):
    """The photos, encoded: 40 latents of 4x4x4."""
    out = tmp_path_factory.mktemp("latents") / "set"
    assert encode(str(photos), out, str(vae), 8)
    return out


def in_order(photos):
    """The photos as the folder lists them, in [-1, 1]."""
    arrays = [np.asarray(Image.open(file)) for file in sorted(photos.rglob("*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def rows_of(path):
    return load_latents(str(path), "train").rows[torch.arange(40)]


@torch.no_grad()
def test_rows_are_the_posterior_that_diffusers_finds(photos, vae, latents):
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
    """z = (mean + std n - shift) scale, by its two moments over 1,000 visits."""
    dataset = load_latents(str(latents), "train")
    batches = Batches(dataset, 40, seed=3)
    order = [np.argsort(batches.indices(step)) for step in range(1000)]
    seen = torch.stack([batches.share(step).data[rows] for step, rows in enumerate(order)])
    mean, std = rows_of(latents).float().chunk(2, dim=1)
    torch.testing.assert_close(
        seen.mean(0), (mean - 0.1) * 2, atol=6 * 2 * float(std.max()) / 1000**0.5, rtol=0
    )
    torch.testing.assert_close(seen.std(0), 2 * std, atol=0, rtol=0.15)
    assert torch.equal(batches.share(5, 1, 2).data, batches.share(5).data[1::2])


@torch.no_grad()
def test_decoding_undoes_the_scale(vae, latents):
    encoder = load_latents(str(latents), "train").encoder
    z = torch.randn(37, 4, 4, 4)
    expected = AutoencoderKL.from_pretrained(vae).decode(z / 2 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(
        runs.decoder(encoder, torch.device("cpu"))(z), expected, atol=1e-5, rtol=1e-5
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


def test_mirror_images_are_rows_of_their_own(photos, vae, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "items_of_a_shard", lambda count, item_bytes: 6)
        patch.setattr(encoding, "CHUNK", 3)  # two in a shard; one of them has a cat and a dog
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
    assert len(both) == 80
    assert torch.bincount(both.labels).tolist() == [40, 40]
    separate = torch.cat([rows_of(tmp_path / "plain"), rows_of(tmp_path / "turned")])
    together = both.rows[torch.arange(80)]
    distance = torch.cdist(separate.float().flatten(1), together.float().flatten(1))
    assert float(distance.min(1).values.max()) < 1e-2  # each is there; 80 different rows
    assert sorted(distance.argmin(1).tolist()) == list(range(80))
    assert torch.equal(
        both.labels[distance.argmin(1)],
        load_latents(str(tmp_path / "plain"), "train").labels.repeat(2),
    )
    assert LatentsPlan.read(tmp_path / "both" / "plan.json").flip


def test_images_are_decoded_some_at_a_time_ahead_of_the_autoencoder(
    photos, vae, latents, tmp_path, monkeypatch
):
    """Two chunks of a shard are in memory: the next is begun before one is encoded."""
    order, begun = [], {first: threading.Event() for first in range(0, 48, 8)}
    begun[40].set()
    real_decode, real_encode = encoding.decode_rows, encoding.latents_of

    def decode(images, rows, *arguments):
        order.append(f"decode {len(rows)}")
        begun[rows.start].set()
        return real_decode(images, rows, *arguments)

    def encode_chunk(*arguments):
        number = sum(one == "encode" for one in order)
        assert begun[8 * (number + 1)].wait(10)
        order.append("encode")
        return real_encode(*arguments)

    monkeypatch.setattr(encoding, "decode_rows", decode)
    monkeypatch.setattr(encoding, "latents_of", encode_chunk)
    monkeypatch.setattr(encoding, "items_of_a_shard", lambda count, item_bytes: 40)
    monkeypatch.setattr(encoding, "CHUNK", 10)  # of batches of 4: two of them
    assert encode(str(photos), tmp_path / "set", str(vae), 8, batch_size=4)
    assert order == ["decode 8"] + ["decode 8", "encode"] * 4 + ["encode"]
    torch.testing.assert_close(rows_of(tmp_path / "set"), rows_of(latents), atol=1e-3, rtol=1e-3)
    assert load_latents(str(tmp_path / "set"), "train").labels.tolist() == [0] * 20 + [1] * 20


def test_interrupted_encoding_goes_on_and_processes_share_it(
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


def test_images_that_changed_are_not_mixed_into_what_was_begun(photos, vae, tmp_path, monkeypatch):
    """As many as before and of the same names: only their sizes and times tell."""
    changing = shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not encode(str(changing), tmp_path / "set", str(vae), 8)
    write_folder(changing, pixels(40, (8, 8, 3), seed=1))
    with pytest.raises(InputError, match="set was begun with other images"):
        encode(str(changing), tmp_path / "set", str(vae), 8)


def test_latents_of_images_without_classes_say_why_there_are_none(vae, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(8, (8, 8, 3)), names=())
    encode(str(photos), tmp_path / "set", str(vae), 8)
    settings = [f"data.path={tmp_path / 'set'}", "data.shape=[4,4,4]", *SMALL]
    with pytest.raises(InputError, match=r"data\.num_classes is 2.*photos has no subfolders"):
        runs.train("imagenet256-b2", tmp_path / "run", [*settings, "data.num_classes=2"])


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


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 8, 4, 4), "compression": "gzip"}])
def test_the_reference_implementations_file_is_read(options, latents, tmp_path):
    rows = rows_of(latents).numpy()
    with h5py.File(tmp_path / "latents.h5", "w") as file:
        file.create_dataset("latents", data=rows, **options)
        file["labels"], file["amount"], file["latent_size"] = np.arange(40) % 10, 40, 4
    dataset = load_latents(str(tmp_path / "latents.h5"), "train")
    which = torch.tensor([39, 3, 3, 0])
    assert torch.equal(dataset.rows[which], torch.from_numpy(rows)[which])
    assert (dataset.shape, dataset.num_classes, dataset.labels[:12].tolist()) == (
        (4, 4, 4),
        10,
        [*range(10), 0, 1],
    )
    assert (dataset.encoder.name, dataset.encoder.scale) == ("stabilityai/sd-vae-ft-mse", 0.18215)
    batch = Batches(dataset, 8, seed=0).share(0)
    assert batch.data.shape == (8, 4, 4, 4)


def test_hdf5_files_that_are_not_whole_are_refused(tmp_path):
    file = tmp_path / "l.h5"
    with pytest.raises(InputError, match=r"data\.path=.*l\.h5"):
        load_latents(str(file), "train")
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"data\.path=.*l\.h5"):
        load_latents(str(file), "train")
    for content, word in (
        ({"images": np.zeros(3)}, "images"),
        ({"latents": np.zeros((4, 8, 2, 2)), "amount": 5}, "amount=5"),
        ({"latents": np.zeros((4, 8, 2, 2)), "latent_size": 32}, "latent_size=32"),
        ({"latents": np.zeros((4, 8, 2, 2)), "labels": np.arange(3)}, "3 labels for 4 latents"),
    ):
        with h5py.File(file, "w") as written:
            for key, value in content.items():
                written[key] = value
        with pytest.raises(InputError, match=word):
            load_latents(str(file), "train")


ROWS = np.abs(np.random.default_rng(0).normal(size=(4, 8, 2, 2))).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (
            {"latents": ROWS[:0], "labels": np.arange(0)},
            r"latents float32\[0, 8, 2, 2\]",
        ),
        ({"latents/part": ROWS}, "no latents"),
        ({"latents": ROWS.astype(np.int32)}, r"latents int32\[4, 8, 2, 2\]"),
        (
            {"latents": np.where(np.arange(8)[:, None, None] < 4, ROWS, -ROWS)},
            "standard deviations below 0",
        ),
        ({"latents": np.full_like(ROWS, np.nan)}, "not finite"),
        ({"latents": ROWS, "labels": np.array([b"cat"] * 4)}, "labels that are not integers"),
        ({"latents": ROWS, "labels": np.arange(0)}, "0 labels for 4 latents"),
    ],
)
def test_hdf5_files_of_other_things_are_refused(content, word, tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as written:
        for key, value in content.items():
            written[key] = value
    with pytest.raises(InputError, match=word):
        load_latents(str(tmp_path / "l.h5"), "train")


def test_hdf5_files_in_another_byte_order_are_read(tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as written:
        written["latents"], written["amount"] = (
            ROWS.astype(">f4"),
            b"four",
        )  # a number that is none says nothing
    which = torch.tensor([3, 0])
    dataset = load_latents(str(tmp_path / "l.h5"), "train")
    assert dataset.rows.dtype == torch.float32
    assert torch.equal(dataset.rows[which], torch.from_numpy(ROWS)[which])


def test_training_sees_the_posterior_shifted_and_scaled(latents):
    """z = ((mean + std n) - shift) scale, value by value, with n what the visit draws."""
    dataset = load_latents(str(latents), "train")
    assert (dataset.encoder.shift, dataset.encoder.scale) == (0.1, 2.0)
    batches = Batches(dataset, 8, seed=1)
    mean, std = rows_of(latents)[torch.from_numpy(batches.indices(0))].float().chunk(2, dim=1)
    noise = batches.visit_noise(0, slice(None))
    torch.testing.assert_close(batches.share(0).data, (mean + std * noise - 0.1) * 2.0)
    torch.testing.assert_close(
        dataset.samples(), (rows_of(latents).float().chunk(2, dim=1)[0] - 0.1) * 2.0
    )


@pytest.fixture(scope="module")
def run(latents, tmp_path_factory):
    """The paper's ImageNet recipe, its DiT made small, on these latents."""
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


def test_samples_are_decoded_by_the_autoencoder_that_made_the_latents(run, vae):
    assert Image.open(run / "samples" / "step-00000002.png").size == (2 + 2 * 34, 2 + 20 * 34)
    loaded = runs.load(run)
    labels = torch.arange(5) % 2
    images = sample_many(loaded.model, 5, labels, "renoise", 1, seed=1, batch_size=2)
    assert images.shape == (5, 3, 8, 8)
    from soflow.sampling import noise_of_samples

    noise = noise_of_samples(1, 0, 5, 1, (4, 4, 4), torch.device("cpu"))[0]
    with torch.no_grad():
        expected = (
            AutoencoderKL.from_pretrained(vae)
            .decode(one_step(loaded.model, noise, labels) / 2 + 0.1)
            .sample
        )
    torch.testing.assert_close(images, expected.clamp(-1, 1), atol=1e-4, rtol=1e-4)


def test_commands_show_images_and_classes_by_name(run, photos, inside, tmp_path):
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


def test_another_copy_of_the_autoencoder_can_be_named_and_must_fit(run, vae, tmp_path, inside):
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


def test_images_of_two_autoencoders_are_not_pieced_together(run, vae, tmp_path, monkeypatch):
    """Pieces are reused only if the same weights, scale and shift would decode them."""
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
            sample_files.sample_to_file(
                runs.load(run, vae=name), tmp_path / "x.npz", 8, None, "renoise", 1, 0
            )
    assert drawn == [0, 2, 4, 0, 2, 4, 6]


def test_real_latents_stand_in_columns_of_their_classes(latents):
    dataset = load_latents(str(latents), "train")
    shown = real_by_class(dataset, 2, rows=3)
    assert torch.equal(shown[0::2], dataset.samples(torch.tensor([0, 1, 2])))
    assert torch.equal(shown[1::2], dataset.samples(torch.tensor([20, 21, 22])))


def test_other_latents_than_a_run_was_begun_with_are_refused(run, photos, vae, latents, tmp_path):
    other = make_vae(tmp_path / "other", seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    encode(str(photos), tmp_path / "set", str(other), 8)
    with pytest.raises(InputError, match=r"encoder.*2\.0"):
        runs.train(str(run), run, [f"data.path={tmp_path / 'set'}"])
    with pytest.raises(InputError, match=r"data\.shape is \[4, 32, 32\].*\[4, 4, 4\]"):
        runs.train("imagenet256-b2", tmp_path / "run", [f"data.path={latents}", *SMALL])


def test_a_note_warns_of_latents_at_a_strange_scale(photos, vae, tmp_path, caplog):
    config = json.loads((vae / "config.json").read_text())
    strange = make_vae(tmp_path / "strange")
    (strange / "config.json").write_text(json.dumps({**config, "scaling_factor": 200.0}))
    encode(str(photos), tmp_path / "set", str(strange), 8)
    caplog.set_level("INFO", "soflow")
    load_latents(str(tmp_path / "set"), "train")
    assert "scale 200.0" in caplog.messages[-1]


def test_no_autoencoder_or_an_impossible_size_is_refused(photos, vae, tmp_path):
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


def test_pictures_without_an_autoencoder_say_so(latents, tmp_path, capsys):
    """Training works without the autoencoder, and says why its pictures are no images."""
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


def test_uint8_of_what_is_stored_is_what_was_stored():
    from soflow.data.dataset import Dataset

    array = pixels(4)
    assert np.array_equal(
        to_uint8(Dataset("x", "", torch.from_numpy(array), None).samples()), array
    )

"""Commands with unusable data end with one line and leave no partial files."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soflow.system.cache import cache_folder
from support.commands import assert_fails
from support.settings import TINY_DIT
from support.small_data import make_vae, pixels, write_folder, write_parquet

SMALL = [*TINY_DIT, "data.size=8", "train.steps=1", "train.batch_size=8", "train.log_every=1"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def train(inside, tmp_path):
    """Runs soflow train with the recipe images on a path."""

    def call(path, *overrides):
        return inside(
            "train", "images", f"data.path={path}", *SMALL, *overrides, "--out", tmp_path / "run"
        )

    return call


def test_folders_without_images(train, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_fails(
        train(tmp_path / "empty"),
        2,
        "empty has no images",
        ".png, .jpg, .webp, .bmp",
    )
    assert_fails(train(tmp_path / "nowhere"), 2, "nowhere")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    assert_fails(train(tmp_path / "text"), 2, "has no images")
    assert not (tmp_path / "run").exists()


def test_a_few_broken_images_are_counted_named_and_left_out(train, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(200, (8, 8, 3)))
    (photos / "cat" / "0000.png").write_bytes(b"")
    (photos / "dog" / "0001.png").write_bytes(b"\x89PNG broken")
    result = train(photos)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "cannot be read" in line)
    assert "photos: 2 of 200 images" in line
    named = Path(line.rsplit("listed in ", 1)[1]).read_text()
    assert "cat/0000.png" in named
    assert "dog/0001.png: not an image" in named


def test_more_than_one_percent_of_broken_images_stops_training(train, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(100, (8, 8, 3)))
    for number in (0, 2):
        (photos / "cat" / f"{number:04d}.png").write_bytes(b"")
    assert_fails(
        train(photos),
        2,
        "of 100 images",
        "cat/000",
        "skipped.txt",
        "data.max_unreadable=",
    )
    assert not (tmp_path / "run").exists()
    assert train(photos, "data.max_unreadable=0.03").returncode == 0


def test_images_of_all_kinds_are_used_and_changes_are_reported(train, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(20, (8, 8, 3)), names=())
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(photos / "deep.png")
    Image.fromarray(pixels(1, (8, 8, 3))[0]).convert("CMYK").save(photos / "print.jpg")
    frames = [Image.fromarray(array) for array in pixels(3, (8, 8, 3))]
    frames[0].save(photos / "moving.webp", save_all=True, append_images=frames[1:])
    result = train(photos)
    assert result.returncode == 0, result.stderr
    for note in (
        "were reduced from 16 to 8 bits",
        "were converted from CMYK to RGB",
        "are animations, of which the first frame is used",
    ):
        assert f"photos: 1 of 23 images {note}" in result.stderr


def test_empty_class_folders(train, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(20, (8, 8, 3)))
    (photos / "owl").mkdir()
    assert_fails(train(photos, "data.num_classes=3"), 2, "data.num_classes is 3", "2 classes")
    result = train(photos)
    assert result.returncode == 0
    assert "without images, owl" in result.stderr


def test_guidance_without_labels_is_rejected(train, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(20, (8, 8, 3)), names=())
    guided = "objective.guidance.scale=2"
    assert_fails(train(photos, guided), 2, "guidance.scale", "no class folders")
    assert_fails(
        train(photos, guided, "data.num_classes=4"),
        2,
        "data.num_classes is 4",
        "no class folders",
    )
    write_folder(photos, pixels(4, (8, 8, 3)))
    assert_fails(
        train(photos, guided, "data.num_classes=2"),
        2,
        "0000.png",
    )


def test_datasets_without_images_and_wrong_columns(train, tmp_path):
    from datasets import Dataset

    (tmp_path / "text").mkdir()
    Dataset.from_dict({"caption": ["a", "b"]}).to_parquet(tmp_path / "text" / "train-0.parquet")
    source = "data.source=huggingface"
    assert_fails(train(tmp_path / "text", source), 2, "text", "caption")
    stored = write_parquet(tmp_path / "stored", pixels(20, (8, 8, 3)))
    wrong = train(stored, source, "data.image_column=img")
    assert_fails(wrong, 2, "'img'", "data.image_column", "picture, kind")
    assert_fails(train(stored, source, "data.split=dev"), 2, "'dev'", "train")
    assert_fails(train(stored, "data.source=folder"), 2, "data.source=huggingface")
    np.savez(tmp_path / "texts.npz", a=np.array([["a", "b"]]))
    assert_fails(train(tmp_path / "texts.npz"), 2, "texts.npz", "a <U1[1, 2]")


def test_latents_with_another_size(inside, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(20, (8, 8, 3)))
    done = inside(
        "encode",
        photos,
        "--vae",
        make_vae(tmp_path / "vae"),
        "--size",
        8,
        "--out",
        tmp_path / "latents",
    )
    assert done.returncode == 0, done.stderr
    assert "20 latents 4x4x4, 2 classes" in done.stdout
    run = ("--out", tmp_path / "run")
    other = inside("train", "imagenet256-b2", f"data.path={tmp_path / 'latents'}", *run)
    assert_fails(other, 2, "data.shape is [4, 32, 32]", "[4, 4, 4]")
    assert_fails(
        inside("train", "imagenet256-b2", *run, cwd=tmp_path),
        2,
        "data.path",
        "soflow encode",
    )
    images = inside("train", "images", f"data.path={tmp_path / 'latents'}", *SMALL, *run)
    assert_fails(images, 2, "data.shape is [-1, 8, 8]", "[4, 4, 4]")


def test_encode_rejects_an_output_folder_with_other_files(inside, tmp_path):
    photos, vae = (
        write_folder(tmp_path / "photos", pixels(20, (8, 8, 3))),
        make_vae(tmp_path / "vae"),
    )

    def encode(*options, source=photos, out=tmp_path / "latents"):
        return inside("encode", source, "--vae", vae, "--out", out, *options)

    assert encode("--size", 8).returncode == 0
    assert_fails(encode("--size", 4), 2, "size=8, not 4")
    assert_fails(encode("--size", 8, "--flip"), 2, "flip=False, not True")
    assert_fails(encode("--size", 8, out=photos), 2, "photos", "--out")
    assert_fails(encode("--size", 8, source=tmp_path / "nowhere"), 2, "nowhere")
    assert_fails(encode("--size", 0), 2, "--size is 0")
    other = ("data.range=[0,100]", "--size", 8)
    assert_fails(encode(*other), 2, "data.range", "--out")
    assert_fails(encode("data.flip=true", "--size", 8), 2, "data.flip", "data.max_unreadable")


@pytest.mark.slow
def test_a_full_disk_leaves_no_readable_partial_cache(tmp_path):
    """No file may exceed 2 kB. A shard of thirteen images of 8x8x3 is larger."""
    photos = write_folder(tmp_path / "photos", pixels(200, (8, 8, 3)))
    command = [
        sys.executable,
        "-m",
        "soflow",
        "train",
        "images",
        f"data.path={photos}",
        *SMALL,
        "--out",
        str(tmp_path / "run"),
    ]

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    result = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=little_room, timeout=120, check=False
    )
    assert_fails(result, 1, "cannot write", "File too large")
    (cache,) = (path for path in (cache_folder() / "data").iterdir() if path.is_dir())
    assert [path.name for path in cache.iterdir()] == ["plan.json"]
    whole = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert whole.returncode == 0, whole.stderr
    assert len(list(cache.glob("shard-*.npy"))) == 16


def test_batches_larger_than_the_data_and_changed_data(train, tmp_path):
    classes = "data.num_classes=2"
    photos = write_folder(tmp_path / "photos", pixels(6, (8, 8, 3)))
    assert_fails(train(photos, classes), 2, "train.batch_size=8", "6 samples")
    write_folder(photos, pixels(20, (8, 8, 3)))
    assert train(photos, classes).returncode == 0
    write_folder(photos, pixels(30, (8, 8, 3)))
    assert_fails(
        train(photos, classes),
        2,
        "20",
        "30",
    )


def test_flips_are_rejected_where_they_make_no_sense(inside):
    assert_fails(inside("train", "moons", "data.flip=true"), 2, "data.flip")
    assert_fails(inside("train", "imagenet256-b2", "data.flip=true"), 2, "--flip")
    assert_fails(inside("train", "cifar10", "data.flip=true"), 2, "data.augment")


def test_other_settings_use_another_cache(train, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(20, (12, 12, 3)))
    assert train(photos).returncode == 0
    result = train(photos, "data.size=12")
    assert result.returncode == 2
    assert "data.shape" in result.stderr
    assert len([path for path in (cache_folder() / "data").iterdir() if path.is_dir()]) == 2

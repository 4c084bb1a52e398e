"""Untrusted images and tables: bad images are unreadable, and no path leads out of the folder."""

import json
import random
import re
import struct
import zlib
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from soflow.data.cache import cached
from soflow.data.folder import FolderImages
from soflow.data.hub import open_splits, opened
from soflow.data.huggingface import HuggingFaceImages
from soflow.data.images import decode, open_image
from soflow.errors import InputError
from soflow.evaluation.sample_set import sample_folder
from support import hostile
from support.hostile import withstands
from support.small_data import pixels, write_folder, write_parquet

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow's warnings on damaged images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png_of(width, height):
    """A PNG with this size in its header and few bytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of(30_000, 30_000), "900000000 pixels"),
        (png_of(12_000, 12_000), "12,000x12,000 pixels, more than the limit of 89,478,485"),
        (EPS, "not an image"),
        (b"\n\x05\x01\x08" + bytes(130), "not an image"),
        (b"", "not an image"),
    ],
)
def test_malicious_images_are_unreadable(content, message, tmp_path, caplog):
    caplog.set_level("INFO", "soflow")
    photos = write_folder(tmp_path / "photos", pixels(120, (8, 8, 3)), names=())
    (photos / "evil.png").write_bytes(content)
    assert len(cached(FolderImages(str(photos), "train"), (8, 8), 3)) == 120
    assert "1 of 121 images" in caplog.messages[-1]
    assert re.search(message, Path(caplog.messages[-1].rsplit("listed in ", 1)[1]).read_text())
    with pytest.raises(InputError, match=r"evil\.png"):
        sample_folder(photos)


def test_a_thin_image_does_not_grow_without_limit(tmp_path):
    Image.new("L", (500_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="pixels"):
        decode(lambda: open_image(tmp_path / "thin.png"), (64, 64), 1)


def test_paths_in_cells_are_not_followed_out_of_the_folder(tmp_path):
    Image.fromarray(pixels(1)[0]).save(tmp_path / "secret.png")
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / "set" / "own.png")
    paths = [
        str(tmp_path / "secret.png"),
        "../secret.png",
        "x/../../secret.png",
        "/etc/passwd",
        "own.png",
    ]
    cells = [{"bytes": None, "path": path} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"picture": pa.array(cells, kind)}), tmp_path / "set" / "train.parquet")
    for path in ("set", "set/train.parquet"):
        images = HuggingFaceImages(str(tmp_path / path), "train", "picture")
        opened = []
        for opener in images.openers(range(len(images))):
            try:
                opened.append(opener().size)
            except Exception as error:
                opened.append("outside" if "is outside" in str(error) else "none")
        assert opened == ["outside", "outside", "outside", "outside", (12, 12)]


def test_cards_and_lists_of_files_are_not_followed_out_of_the_folder(tmp_path):
    write_parquet(tmp_path / "secret", pixels(4))
    write_parquet(tmp_path / "set", pixels(4))
    for files in ("../secret/*.parquet", str(tmp_path / "secret" / "*.parquet")):
        (tmp_path / "set" / "README.md").write_text(
            f'---\nconfigs:\n- config_name: default\n  data_files: "{files}"\n---\n'
        )
        with pytest.raises(InputError, match="outside"):
            open_splits(str(tmp_path / "set"))
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "secret-set")
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    name = next((tmp_path / "secret-set").glob("*.arrow")).name
    state["_data_files"] = [{"filename": f"../secret-set/{name}"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="outside"):
        open_splits(str(tmp_path / "saved"))
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["../secret-set"]}')
    with pytest.raises(InputError, match="outside"):
        open_splits(str(tmp_path / "dict"))


def test_loading_scripts_do_not_run(tmp_path):
    write_parquet(tmp_path / "evil", pixels(4))
    (tmp_path / "evil" / "evil.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n"
    )
    withstands(lambda: HuggingFaceImages(str(tmp_path / "evil"), "train"))
    withstands(lambda: HuggingFaceImages(str(tmp_path / "evil" / "evil.py"), "train"))
    assert not (tmp_path / "canary").exists()
    assert datasets.config.HF_DATASETS_TRUST_REMOTE_CODE is False


def test_damaged_parquet_is_rejected_in_one_line(tmp_path):
    file = next(write_parquet(tmp_path / "set", pixels(4)).glob("*.parquet"))
    whole, draw = file.read_bytes(), random.Random(0)

    def work():
        opened.cache_clear()  # datasets caches by path within a process
        images = HuggingFaceImages(str(file), "train")
        return len(images.openers(range(len(images))))

    assert withstands(work) == 4
    found = []
    for _ in range(8):
        file.write_bytes(hostile.damage(whole, draw))
        found.append(withstands(work))
    assert None in found  # some damage is detected
    assert set(found) <= {None, *range(5)}  # damage never adds rows

"""The range of stored values is found, stated, or rejected."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.values import to_bytes, usual_range
from soflow.errors import InputError

random = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 1, True, (0, 1)), (0.0, 0.4, False, (0, 1)), (-1.0, 0.9, False, (-1, 1)),
        (0, 250, True, (0, 255)), (3.5, 200.5, False, (0, 255)), (0, 1000, True, (0, 1023)),
        (0, 4095, True, (0.0, 4095.0)), (0, 4096, True, (0, 16383)), (0, 65535, True, (0, 65535)),
    ],
)  # fmt: skip
def test_usual_ranges_are_found(low, high, whole, expected):
    assert usual_range(float(low), float(high), whole, "x") == expected


@pytest.mark.parametrize(
    ("low", "high", "whole"),
    [(0, 20, True), (-1, 1, True), (-2.1, 2.6, False), (0, 70000, True), (0.0, 2.3, False)],
)
def test_other_ranges_are_rejected_and_the_setting_is_named(low, high, whole):
    with pytest.raises(InputError, match=rf"data\.range=\[{low:g},{high:g}\]"):
        usual_range(float(low), float(high), whole, "x")


def test_bytes_with_a_range():
    assert to_bytes(np.array([-1.0, 0.0, 1.0, 2.0]), -1.0, 1.0).tolist() == [0, 128, 255, 255]


def folder_of(tmp_path, arrays, ending="png"):
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i:03d}.{ending}")
    return DataConfig(source="folder", path=str(tmp_path), shape=(1, 8, 8), num_classes=0)


def test_twelve_bits_in_sixteen_use_the_whole_range(tmp_path):
    arrays = random.integers(0, 4096, (4, 8, 8), dtype=np.uint16)
    arrays[0, 0, 0] = 4095
    dataset = sources.load(folder_of(tmp_path, arrays))
    expected = torch.from_numpy(arrays.astype(np.float32))[:, None] / 4095 * 2 - 1
    torch.testing.assert_close(dataset.samples(), expected, atol=1 / 255, rtol=0)
    assert "0 to 4095" in dataset.notes[0]


def test_float_files_and_masks(tmp_path):
    arrays = random.random((3, 8, 8), dtype=np.float32)
    (tmp_path / "floats").mkdir()
    dataset = sources.load(folder_of(tmp_path / "floats", arrays, "tif"))
    torch.testing.assert_close(
        dataset.samples(), torch.from_numpy(arrays)[:, None] * 2 - 1, atol=1 / 255, rtol=0
    )
    (tmp_path / "masks").mkdir()
    masks = random.integers(0, 2, (3, 8, 8), dtype=np.uint8)
    found = sources.load(folder_of(tmp_path / "masks", masks)).samples()
    assert torch.equal(found, torch.from_numpy(masks)[:, None].float() * 2 - 1)


def test_dark_images_stop_training_unless_a_range_is_set(tmp_path):
    config = folder_of(tmp_path, random.integers(0, 21, (3, 8, 8), dtype=np.uint8))
    with pytest.raises(InputError, match=r"data\.range=\[0,20\].*data\.range=\[0,255\]"):
        sources.load(config)
    stretched = sources.load(config.model_copy(update={"range": (0.0, 20.0)})).samples()
    assert (stretched.min(), stretched.max()) == (-1, 1)
    kept = sources.load(config.model_copy(update={"range": (0.0, 255.0)})).samples()
    assert kept.max() < -0.8


def test_a_later_image_beyond_the_range_stops_training(tmp_path):
    arrays = np.full((130, 8, 8), 4095, np.uint16)
    arrays[1] = 60000  # not among the 64 images that determine the range
    config = folder_of(tmp_path, arrays)
    with pytest.raises(InputError, match=r"data\.range=\[0,60000\]"):
        sources.load(config)


def test_a_black_image_is_valid(tmp_path):
    assert sources.load(folder_of(tmp_path, np.zeros((2, 8, 8), np.uint8))).samples().max() == -1


def test_masks_that_start_empty_have_their_range(tmp_path):
    masks = np.zeros((130, 8, 8), np.uint8)
    masks[1, 2:5] = 1  # not among the 64 images that determine the range
    config = folder_of(tmp_path, masks)
    samples = sources.load(config).samples()
    assert samples.unique().tolist() == [-1, 1]


def test_an_image_brighter_than_masks_stops_training(tmp_path):
    images = np.ones((130, 8, 8), np.uint8)
    images[1] = 200
    config = folder_of(tmp_path, images)
    with pytest.raises(InputError, match=r"data\.range=\[0,200\]"):
        sources.load(config)


def png_of_16_bits(path, values):
    """A color PNG with 16 bits per channel, which Pillow can read but not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        size, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        content += size + kind + data + check
    path.mkdir()
    (path / "a.png").write_bytes(content)


@pytest.mark.parametrize("asked", ["auto", (0.0, 4095.0)])
def test_color_images_with_twelve_of_sixteen_bits_stop_training(asked, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3))
    png_of_16_bits(tmp_path / "whole", values)
    png_of_16_bits(tmp_path / "few", values // 16)
    config = DataConfig(source="folder", shape=(3, 8, 8), num_classes=0)
    whole = config.model_copy(update={"path": str(tmp_path / "whole"), "range": (0.0, 65535.0)})
    expected = (values >> 8) / 127.5 - 1
    assert np.abs(sources.load(whole).samples()[0].permute(1, 2, 0).numpy() - expected).max() < 0.01
    few = config.model_copy(update={"path": str(tmp_path / "few"), "range": asked})
    with pytest.raises(InputError, match="convert"):
        sources.load(few)


def test_a_range_above_8_bits_does_not_change_8_bit_images(tmp_path):
    config = folder_of(tmp_path, np.full((2, 8, 8), 255, np.uint8))
    config = config.model_copy(update={"range": (0.0, 4095.0)})
    assert float(sources.load(config).samples().min()) == 1


def test_nonfinite_values_do_not_affect_the_range(tmp_path):
    images = np.random.default_rng(0).random((4, 8, 8), np.float32)
    images[0, 0, 0] = np.nan
    config = folder_of(tmp_path, images, "tif")
    dataset = sources.load(config.model_copy(update={"max_unreadable": 0.5}))
    assert len(dataset) == 3
    assert "values 0 to 1" in dataset.notes[0]

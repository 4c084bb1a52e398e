"""All kinds of images, and cropping as in ADM."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from soflow.data.images import crop, decode
from support.small_data import pixels


def saved(image, kind="PNG", **options):
    """Writes the image to a file of this type. Returns a function that opens it."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return lambda: Image.open(io.BytesIO(stream.getvalue()))


def halved(array):
    """Means of 2x2 boxes, rounded."""
    height, width = (n // 2 for n in array.shape[:2])
    return np.floor(array.reshape(height, 2, width, 2, -1).astype(float).mean((1, 3)) + 0.5)


def test_images_of_the_right_size_do_not_change():
    array = pixels(1)[0]
    found, done = decode(saved(Image.fromarray(array)), (12, 12), 3)
    assert np.array_equal(found, array)
    assert done == set()


def test_the_short_side_is_halved_by_boxes_while_it_is_twice_the_target():
    array = pixels(1, (64, 64, 3))[0]
    found = np.asarray(crop(Image.fromarray(array), 16, 16))
    assert np.abs(found - halved(halved(array))).max() <= 2  # Pillow rounds after each direction


def test_the_last_resize_is_bicubic():
    array = pixels(1, (48, 48, 3))[0]
    found = np.asarray(crop(Image.fromarray(array), 32, 32))
    assert np.array_equal(
        found, np.asarray(Image.fromarray(array).resize((32, 32), Image.Resampling.BICUBIC))
    )


@pytest.mark.parametrize("shape", [(20, 41, 3), (41, 20, 3)])
def test_the_center_is_cropped(shape):
    array = pixels(1, shape)[0]
    top, left = (shape[0] - 20) // 2, (shape[1] - 20) // 2
    found, done = decode(saved(Image.fromarray(array)), (20, 20), 3)
    assert np.array_equal(found, array[top : top + 20, left : left + 20])
    assert done == {"were resized or cropped"}


def test_small_images_are_enlarged_and_counted():
    found, done = decode(saved(Image.fromarray(pixels(1, (8, 10, 3))[0])), (16, 16), 3)
    assert found.shape == (16, 16, 3)
    assert done == {"were enlarged"}


def test_sixteen_bits_become_eight():
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    found, done = decode(saved(Image.fromarray(deep)), (8, 8), 1)
    assert np.abs(found[:, :, 0] - deep / 257).max() <= 0.5  # 65535 becomes 255
    assert done == {"were reduced from 16 to 8 bits"}


@pytest.mark.parametrize(("colours", "kind"), [(3, 2), (4, 6)])
def test_sixteen_bits_per_color_become_eight_and_are_counted(colours, kind):
    """The PNG is written by hand, because Pillow does not write this kind."""
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, colours), dtype=np.uint16)
    deep[..., 3:] = 65535

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0))
    content = (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    found, done = decode(lambda: Image.open(io.BytesIO(content)), (8, 8), 3)
    assert np.array_equal(found, deep[..., :3] >> 8)
    assert "were reduced from 16 to 8 bits" in done


def test_transparent_images_are_placed_on_white():
    array = pixels(1, (8, 8, 4))[0]
    alpha = array[:, :, 3:] / 255
    found, done = decode(saved(Image.fromarray(array)), (8, 8), 3)
    assert np.abs(found - (alpha * array[:, :, :3] + (1 - alpha) * 255)).max() <= 1
    assert done == {"are transparent and were put on a white background"}


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.fromarray(array) for array in pixels(3)]
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        opener = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        found, done = decode(opener, (12, 12), 3)
        assert np.array_equal(found, np.asarray(frames[0]))
        assert done == {"are animations, of which the first frame is used"}


def test_other_color_modes_and_rotated_photographs():
    array = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    found, done = decode(
        saved(Image.fromarray(array).convert("CMYK"), "JPEG", quality=100), (8, 8), 3
    )
    assert np.abs(found.astype(int) - array).max() <= 3
    assert done == {"were converted from CMYK to RGB"}
    upright = pixels(1, (8, 8))[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate a quarter clockwise
    found, _ = decode(saved(Image.fromarray(upright), exif=exif), (8, 8), 1)
    assert np.array_equal(found[:, :, 0], np.rot90(upright, -1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_grey_and_rgb_from_every_common_mode(mode):
    image = Image.fromarray(pixels(1)[0]).convert(mode)
    for channels, wanted in ((1, "L"), (3, "RGB")):
        found, done = decode(saved(image), (12, 12), channels)
        assert np.array_equal(found.squeeze(), np.asarray(image.convert(wanted)))
        assert done == set()


def test_broken_files_raise():
    stream = io.BytesIO()
    Image.fromarray(pixels(1, (64, 64, 3))[0]).save(stream, "JPEG")
    for content in (b"", b"not an image", stream.getvalue()[:300]):
        with pytest.raises(OSError, match=r"."):
            decode(lambda content=content: Image.open(io.BytesIO(content)), (8, 8), 3)

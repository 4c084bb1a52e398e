"""From image files to bytes of one shape: decoded, made grey or RGB, cropped to a square.

Cropping is ADM's (arXiv 2105.05233), behind most published figures on ImageNet: halve by boxes
while the short side is at least twice the target, resize to the target by bicubic interpolation,
crop the middle.
"""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from soflow.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Formats that are decoded, under any file name. Some of Pillow's other formats start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: The most pixels of an image. Pillow warns of larger ones, too.
MOST_PIXELS = 89_478_485
#: Names of splits in folders and arrays.
SPLITS = ("train", "test", "val", "valid", "validation")
MODES = {1: "L", 3: "RGB"}
REDUCED = "reduced from 16 to 8 bits"

#: Opens one image. Decoders raise any exception.
Opener = Callable[[], Image.Image]


@runtime_checkable
class Images(Protocol):
    """A collection of images that are not decoded yet.

    Attributes:
        name: What messages call the collection.
        labels: The class of each image, or None.
        class_names: The names of the classes, or ().
        unlabelled: Why there are no classes.
        fingerprint: A text that changes whenever the collection does.
    """

    name: str
    split: str
    labels: list[int] | None
    class_names: tuple[str, ...]
    unlabelled: str
    fingerprint: str

    def __len__(self) -> int: ...
    def openers(self, rows: range) -> Sequence[Opener]: ...
    def where(self, row: int) -> str: ...  # what messages call this image


def require_split(split: str, splits: Sequence[str], name: str) -> None:
    """Raises InputError if there is no such split."""
    if split not in splits:
        raise InputError(f"{name} has no split '{split}': its splits are {' and '.join(splits)}")


def choose(
    path: str, what: str, setting: str, named: str, found: list[str], known: str, more: list[str]
) -> str | None:
    """The column or array that data.SETTING names, or the only one found; None without any.

    Raises InputError if the named one is neither found nor one of `more`, or several are found.
    """
    if named and named not in [*found, *more]:
        raise InputError(f"{path} has no {what} '{named}', set by data.{setting}; {known}")
    if not named and len(found) > 1:
        several = f"more than one {what}, {' and '.join(found)}"
        raise InputError(f"{path} has {several}: set data.{setting}={found[0]}; {known}")
    return named or next(iter(found), None)


def open_image(source: Path | BytesIO) -> Image.Image:
    """Opens an image without decoding it. Raises any exception, ValueError for too many pixels."""
    image = Image.open(source, formats=FORMATS)
    require_size(image.width, image.height)
    return image


def require_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width:,}x{height:,} pixels, more than {MOST_PIXELS:,}")


def decode(opener: Opener, size: int, channels: int) -> tuple[np.ndarray, set[str]]:
    """Decodes one image.

    Returns:
        Bytes (size, size, channels), and what was done to the image beyond decoding, in words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes
        image = opener()
        deep = any(";16B" in str(tile) for tile in getattr(image, "tile", ()))  # a PNG of 16 bits
        done = {REDUCED} if deep else set()
        image.load()
        if getattr(image, "n_frames", 1) > 1:
            done.add("of an animation, the first frame was taken")
        image = ImageOps.exif_transpose(image)
        image = in_mode(image, MODES[channels], done)
    if image.size != (size, size):
        done.add("enlarged" if min(image.size) < size else "made smaller or cropped")
    return np.asarray(crop_square(image, size)).reshape(size, size, channels), done


def channels_of(image: Image.Image) -> int:
    """1 for a grey image, 3 for one in colour."""
    return 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3


def in_mode(image: Image.Image, mode: str, done: set[str]) -> Image.Image:
    """The image as "L" or "RGB"; adds to `done` what had to be done."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's conversion would cut off at 255
        done.add(REDUCED)
        deep = np.asarray(image).astype(np.float64)
        image = Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        done.add("transparent, put on white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "P", "RGB"):
        done.add(f"{image.mode} to {mode}")
    return image.convert(mode)


def crop_square(image: Image.Image, size: int) -> Image.Image:
    """The middle of an image, `size` by `size`. Raises ValueError if it is too long and thin."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    require_size(width, height)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))

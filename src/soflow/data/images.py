"""From any image file to bytes of one shape: decoded, made grey or RGB, cropped to a square.

Cropping is ADM's (arXiv 2105.05233), which most published figures on ImageNet rest on: halve by boxes while the short side
is at least twice the target, bicubic to the target, crop the middle.
"""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: What is decoded, whatever a file is called: of Pillow's other formats some start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: An image may have so many pixels; from there on Pillow, too, takes it for an attack.
MOST_PIXELS = 89_478_485
#: Names by which folders and arrays are known as splits.
SPLITS = ("train", "test", "val", "valid", "validation")
MODES = {1: "L", 3: "RGB"}
REDUCED = "reduced from 16 to 8 bits"

#: Opens one image; raises whatever decoders raise.
Opener = Callable[[], Image.Image]


@runtime_checkable
class Images(Protocol):
    """A collection of images that have not been decoded yet.

    labels: the class of each, or None, and then `unlabelled` says why if there might have been some. fingerprint: text that
    changes when the collection does.
    """

    name: str
    split: str
    labels: list[int] | None
    class_names: tuple[str, ...]
    unlabelled: str
    fingerprint: str

    def __len__(self) -> int: ...
    def openers(self, rows: range) -> Sequence[Opener]: ...
    def where(self, row: int) -> str: ...  # what people call this image


def open_image(source: Path | BytesIO) -> Image.Image:
    """An image that is not decoded yet. Raises whatever Pillow raises, and ValueError for one of too many pixels."""
    image = Image.open(source, formats=FORMATS)
    require_size(image.width, image.height)
    return image


def require_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width:,}x{height:,} pixels, more than {MOST_PIXELS:,}")


def decode(opener: Opener, size: int, channels: int) -> tuple[np.ndarray, set[str]]:
    """One image as bytes (size, size, channels), and in words what was done to it beyond decoding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata and sizes
        image = opener()
        done = (
            {REDUCED} if any(";16B" in str(tile) for tile in getattr(image, "tile", ())) else set()
        )  # how PNG says it
        image.load()
        if getattr(image, "n_frames", 1) > 1:
            done.add("of an animation, the first frame was taken")
        image = ImageOps.exif_transpose(image)
        image = in_mode(image, MODES[channels], done)
    if image.size != (size, size):
        done.add("enlarged" if min(image.size) < size else "made smaller or cropped")
    return np.asarray(crop_square(image, size)).reshape(size, size, channels), done


def channels_of(image: Image.Image) -> int:
    """1 of a grey image, 3 of one in colours."""
    return 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3


def in_mode(image: Image.Image, mode: str, done: set[str]) -> Image.Image:
    """The image as "L" or "RGB", nothing lost that can be kept; adds to `done` what had to be done."""
    if image.mode.startswith(
        "I"
    ):  # 16 bits, in whichever of Pillow's modes; converting would cut off at 255
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
    """The middle of an image, `size` by `size`. Raises ValueError for one so thin that it would grow without measure."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    require_size(width, height)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))

"""From image files to bytes of one shape: decoded, made grey or RGB, resized and cropped.

Cropping is ADM's (arXiv 2105.05233), behind most published figures on ImageNet: halve by boxes
while both sides are at least twice the target, resize by bicubic interpolation until the image
covers the target, crop the middle.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from soflow.config.schema import AskedRange, Range
from soflow.data.values import DARK, extremes, in_words, to_bytes, usual_range
from soflow.errors import InputError

#: Formats that are decoded, under any file name, and their usual endings. Some of Pillow's other
#: formats start programs.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c"),
    "TGA": (".tga",),
    "AVIF": (".avif",),
}
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
#: The most pixels of an image. Pillow warns of larger ones, too.
MOST_PIXELS = 89_478_485
MODES = {1: "L", 3: "RGB"}
#: What Pillow calls 16 bits per channel.
SIXTEEN = (";16B", ";16L", ";16N")
TOO_FEW_BITS = (
    "images in colour have 16 bits per channel, of which the upper 8 are read, but use fewer: "
    "convert them to 8 bits"
)
REDUCED = "reduced from 16 to 8 bits"
#: Images that are looked at to find the range of their values.
LOOKED_AT = 64
#: The range of bytes; and of one more bit, which tells 8-bit images from deeper ones.
BYTES: Range = (0.0, 255.0)

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
        notes: What was found, and what was left out.
    """

    name: str
    split: str
    labels: list[int] | None
    class_names: tuple[str, ...]
    unlabelled: str
    fingerprint: str
    notes: list[str]

    def __len__(self) -> int: ...
    def openers(self, rows: range) -> Sequence[Opener]: ...
    def where(self, row: int) -> str: ...  # what messages call this image


@dataclass(frozen=True)
class Scale:
    """The ranges of values: of 8-bit images, and of deeper ones (16 bits, floats).

    found: Which of them were found from some images. A deeper value beyond is then an error.
    """

    plain: Range = BYTES
    deep: Range = (0.0, 65535.0)
    found: tuple[Range, ...] = ()

    def __str__(self) -> str:
        if not self.found and self.plain != self.deep:
            return f"{in_words(self.plain)} (8 bits) and {in_words(self.deep)} (more bits)"
        return " and ".join(map(in_words, self.found or (self.plain,)))


#: Bytes, and deeper images that use all of 16 bits.
USUAL_SCALE = Scale()


def find_scale(images: Images, asked: AskedRange) -> Scale:
    """The ranges of values of a collection, from images all over it or as data.range asks.

    Raises:
        InputError: If the values have no usual range.
    """
    if asked == "standardize":
        raise InputError("data.range=standardize is for arrays, not for image files: set auto")
    if not isinstance(asked, str):
        return Scale(asked if asked[1] <= BYTES[1] else BYTES, asked)  # 8 bits hold no more
    some = np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).round().astype(int)
    ends: dict[bool, list[Range]] = {False: [], True: []}  # of 8-bit images, and of deeper ones
    whole, sixteen = True, False
    for number, row in enumerate(dict.fromkeys([*some.tolist(), *range(len(images))])):
        if number >= LOOKED_AT and any(high > 0 for _, high in ends[False] + ends[True]):
            break  # else all are empty so far
        bright = any(high >= DARK * BYTES[1] for _, high in ends[False])
        with suppress(Exception), warnings.catch_warnings():  # decoding reports what is damaged
            warnings.simplefilter("ignore")
            image = images.openers(range(row, row + 1))[0]()
            if (deep := is_deep(image)) or not bright:
                sixteen = sixteen or (not deep and has_sixteen_bits(image))
                values = np.asarray(image if deep else image.convert("RGB"))
                ends[deep] += [extremes([values])] if np.isfinite(values).all() else []
                whole = whole and values.dtype.kind in "iu"
    low, high = joined([(0.0, 0.0), *ends[False]])
    usual = high == 0 or high >= DARK * BYTES[1]
    if sixteen and not usual:
        raise InputError(TOO_FEW_BITS)
    eight = BYTES if usual else usual_range(low, high, True, images.name)
    if ends[True]:
        deeper = usual_range(*joined(ends[True]), whole, images.name)
        return Scale(eight, deeper, (eight, deeper) if ends[False] else (deeper,))
    return Scale(eight, found=(eight,))


def joined(ends: Sequence[Range]) -> Range:
    """The smallest and the largest of several ends."""
    return min(low for low, _ in ends), max(high for _, high in ends)


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


@cache
def formats() -> tuple[str, ...]:
    """The formats that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


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
    image = Image.open(source, formats=formats())
    require_size(image.width, image.height)
    return image


def require_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width:,}x{height:,} pixels, more than {MOST_PIXELS:,}")


def decode(
    opener: Opener, size: tuple[int, int], channels: int, scale: Scale = USUAL_SCALE
) -> tuple[np.ndarray, set[str]]:
    """Decodes one image.

    Args:
        opener: Opens the image.
        size: Height and width of the result.
        channels: 1 (grey) or 3 (RGB).
        scale: The ranges of values.

    Returns:
        Bytes (*size, channels), and what was done to the image beyond decoding, in words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes
        image = opener()
        done = set()
        if has_sixteen_bits(image):
            done.add(REDUCED)
            require_whole_range(image, scale)
        image.load()
        if getattr(image, "n_frames", 1) > 1:
            done.add("of an animation, the first frame was taken")
        image = ImageOps.exif_transpose(image)
        image = in_mode(image, MODES[channels], done, scale)
    height, width = size
    if image.size != (width, height):
        small = image.width < width or image.height < height
        done.add("enlarged" if small else "made smaller or cropped")
    return np.asarray(crop(image, height, width)).reshape(height, width, channels), done


def channels_of(image: Image.Image) -> int:
    """1 for a grey image, 3 for one in colour."""
    return 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3


def in_mode(
    image: Image.Image, mode: str, done: set[str], scale: Scale = USUAL_SCALE
) -> Image.Image:
    """The image as "L" or "RGB"; adds to `done` what had to be done."""
    if is_deep(image):  # Pillow's conversion would cut off at 255
        done.add(REDUCED)
        image = Image.fromarray(eight_bits(np.asarray(image), scale))
    elif scale.plain != BYTES:
        image = image.convert(mode)
        require_within(np.asarray(image), scale.plain, scale)
        image = Image.fromarray(to_bytes(np.asarray(image), *scale.plain))
    if image.has_transparency_data:
        done.add("transparent, put on white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "P", "RGB"):
        done.add(f"{image.mode} to {mode}")
    return image.convert(mode)


def eight_bits(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Deep values as bytes. Raises InputError beyond a range that was found from other images."""
    low, high = scale.deep
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    require_within(values, scale.deep, scale)
    return to_bytes(values, low, high)


def require_within(values: np.ndarray, found: Range, scale: Scale) -> None:
    """Raises InputError for values beyond a range that was found from other images."""
    low, high = found
    least, most = extremes([values])
    if scale.found and not low <= least <= most <= high:
        raise InputError(
            f"an image has values from {least:g} to {most:g}, but {LOOKED_AT} others suggest "
            f"{in_words(found)}: set data.range=[{min(low, least):g},{max(high, most):g}]"
        )


def require_whole_range(image: Image.Image, scale: Scale) -> None:
    """Raises InputError for a 16-bit colour image that does not use all 16 bits.

    Pillow reads the upper 8 bits, in which 12-bit content has 16 levels left.
    """
    whole = scale.found or scale.deep in (BYTES, USUAL_SCALE.deep)
    if not is_deep(image) and (scale.plain != BYTES or not whole):
        raise InputError(TOO_FEW_BITS)


def has_sixteen_bits(image: Image.Image) -> bool:
    """Whether the file has 16 bits per channel. Known before the image is loaded."""
    return any(name in str(tile) for tile in getattr(image, "tile", ()) for name in SIXTEEN)


def crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of an image, resized to cover it. Raises ValueError if it is too long and thin."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    large = round(image.width * scale), round(image.height * scale)
    require_size(*large)
    image = image.resize(large, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

"""Converts image files to bytes of one shape.

Images are decoded, converted to grayscale or RGB, resized and cropped.

Cropping follows ADM (arXiv 2105.05233), like most published results on ImageNet: halve the image
with box filters while both sides are at least twice the target, resize it with bicubic
interpolation so that it covers the target, and crop the center.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from soflow.config.schema import AskedRange, Range
from soflow.data.values import DARK, extremes, in_words, to_bytes, usual_range
from soflow.errors import InputError

#: The supported formats and their usual file extensions. Formats are recognized by content. Other
#: formats are not decoded, since Pillow starts external programs for some of them.
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
#: The maximum number of pixels of an image, the same as in Pillow's warning.
MOST_PIXELS = 89_478_485
MODES = {1: "L", 3: "RGB"}
#: Pillow's names of raw modes with 16 bits per channel.
SIXTEEN = (";16B", ";16L", ";16N")
TOO_FEW_BITS = (
    "16-bit color images must use the full range of 16 bits, because only the upper 8 bits can be "
    "read: convert them to 8 bits"
)
REDUCED = "were reduced from 16 to 8 bits"
#: Images that are read to find the range of values.
LOOKED_AT = 64
#: The range of bytes.
BYTES: Range = (0.0, 255.0)

#: Opens one image. It may raise any exception, since decoders do.
Opener = Callable[[], Image.Image]


@runtime_checkable
class Images(Protocol):
    """A collection of images that are not decoded yet.

    Attributes:
        name: The name of the collection in messages.
        split: The name of the split.
        labels: The class of each image; None without classes.
        class_names: The names of the classes; () without names.
        unlabelled: The reason why there are no classes.
        fingerprint: A text that changes whenever the collection changes.
        notes: Remarks on the images that were found and left out.
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
    def where(self, row: int) -> str: ...  # the name of this image in messages


@dataclass(frozen=True)
class Scale:
    """The ranges of values of 8-bit images (`plain`) and of deeper ones (`deep`: 16 bits, floats).

    `found` has the ranges that were estimated from some images. Values outside of them are errors.
    """

    plain: Range = BYTES
    deep: Range = (0.0, 65535.0)
    found: tuple[Range, ...] = ()

    def __str__(self) -> str:
        if not self.found and self.plain != self.deep:
            return f"{in_words(self.plain)} (8 bits) and {in_words(self.deep)} (more bits)"
        return " and ".join(map(in_words, self.found or (self.plain,)))


#: 8-bit images, and deeper images that use the full range of 16 bits.
USUAL_SCALE = Scale()


def find_scale(images: Images, asked: AskedRange) -> Scale:
    """The ranges of values of a collection: `data.range`, or estimated from some of the images.

    Raises:
        InputError: If the range of values is not a usual one.
    """
    if asked == "standardize":
        raise InputError("data.range=standardize does not apply to images: set data.range=auto")
    if not isinstance(asked, str):
        return Scale(asked if asked[1] <= BYTES[1] else BYTES, asked)  # 8 bits are at most 255
    seen = look_at(images)
    low, high = joined([(0.0, 0.0), *seen.plain])
    usual = high == 0 or high >= DARK * BYTES[1]
    if seen.sixteen and not usual:
        raise InputError(f"{images.name}: {TOO_FEW_BITS}")
    eight = BYTES if usual else usual_range(low, high, True, images.name)
    if seen.deep:
        deeper = usual_range(*joined(seen.deep), seen.integers, images.name)
        return Scale(eight, deeper, (eight, deeper) if seen.plain else (deeper,))
    return Scale(eight, found=(eight,))


@dataclass
class Seen:
    """The values of the images that were looked at."""

    plain: list[Range] = field(default_factory=list)  # the range of each 8-bit image
    deep: list[Range] = field(default_factory=list)  # the range of each deeper image
    integers: bool = True  # whether all values are integers
    sixteen: bool = False  # whether a color image has 16 bits, of which Pillow reads only 8


def look_at(images: Images) -> Seen:
    """Looks at LOOKED_AT images, evenly spaced, and at more of them while all are black.

    After a bright 8-bit image, other 8-bit images are not decoded: their range is known.
    """
    seen = Seen()
    some = np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).round().astype(int)
    for number, row in enumerate(dict.fromkeys([*some.tolist(), *range(len(images))])):
        if number >= LOOKED_AT and any(high > 0 for _, high in seen.plain + seen.deep):
            break
        bright = any(high >= DARK * BYTES[1] for _, high in seen.plain)
        with suppress(Exception), warnings.catch_warnings():  # decoding reports damaged images
            warnings.simplefilter("ignore")
            image = images.openers(range(row, row + 1))[0]()
            deep = is_deep(image)
            if bright and not deep:
                continue
            seen.sixteen |= not deep and has_sixteen_bits(image)
            values = np.asarray(image if deep else image.convert("RGB"))
            if np.isfinite(values).all():
                (seen.deep if deep else seen.plain).append(extremes([values]))
            seen.integers &= values.dtype.kind in "iu"
    return seen


def joined(ends: Sequence[Range]) -> Range:
    """The union of several ranges."""
    return min(low for low, _ in ends), max(high for _, high in ends)


def is_deep(image: Image.Image) -> bool:
    """Whether an image is a grayscale image with more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


@cache
def formats() -> tuple[str, ...]:
    """The supported formats that the installed Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def choose(
    path: str, what: str, setting: str, named: str, found: list[str], known: str, more: list[str]
) -> str | None:
    """The column or array named by data.SETTING, or the only candidate; None without candidates.

    Raises InputError if the named one is neither in `found` nor in `more`, or several are found.
    """
    if named and named not in [*found, *more]:
        raise InputError(f"data.{setting} is '{named}', but {path} has no such {what}: {known}")
    if not named and len(found) > 1:
        several = f"more than one {what}, {' and '.join(found)}"
        raise InputError(f"{path} has {several}: set data.{setting}={found[0]} ({known})")
    return named or next(iter(found), None)


def open_image(source: Path | BytesIO) -> Image.Image:
    """Opens an image without decoding it. Raises any exception, ValueError for too many pixels."""
    image = Image.open(source, formats=formats())
    require_size(image.width, image.height)
    return image


def require_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"it has {width:,}x{height:,} pixels, more than the limit of {MOST_PIXELS:,}"
        )


def decode(
    opener: Opener, size: tuple[int, int], channels: int, scale: Scale = USUAL_SCALE
) -> tuple[np.ndarray, set[str]]:
    """Decodes one image.

    Args:
        opener: Opens the image.
        size: The height and width of the result.
        channels: The number of channels: 1 (grayscale) or 3 (RGB).
        scale: The ranges of values.

    Returns:
        Bytes (*size, channels), and descriptions of the changes made to the image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata and sizes
        image = opener()
        done = set()
        if has_sixteen_bits(image):
            done.add(REDUCED)
            require_whole_range(image, scale)
        image.load()
        if getattr(image, "n_frames", 1) > 1:
            done.add("are animations, of which the first frame is used")
        image = ImageOps.exif_transpose(image)
        image = in_mode(image, MODES[channels], done, scale)
    height, width = size
    if image.size != (width, height):
        small = image.width < width or image.height < height
        done.add("were enlarged" if small else "were resized or cropped")
    return np.asarray(crop(image, height, width)).reshape(height, width, channels), done


def channels_of(image: Image.Image) -> int:
    """The number of channels: 1 for a grayscale image, 3 for a color image."""
    return 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3


def in_mode(
    image: Image.Image, mode: str, done: set[str], scale: Scale = USUAL_SCALE
) -> Image.Image:
    """Converts an image to mode "L" or "RGB". Adds descriptions of the changes to `done`."""
    if is_deep(image):  # Pillow's conversion would clip values at 255
        done.add(REDUCED)
        image = Image.fromarray(eight_bits(np.asarray(image), scale))
    elif scale.plain != BYTES:
        image = image.convert(mode)
        require_within(np.asarray(image), scale.plain, scale)
        image = Image.fromarray(to_bytes(np.asarray(image), *scale.plain))
    if image.has_transparency_data:
        done.add("are transparent and were put on a white background")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "P", "RGB"):
        done.add(f"were converted from {image.mode} to {mode}")
    return image.convert(mode)


def eight_bits(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Converts deep values to bytes. Raises InputError for values outside an estimated range."""
    low, high = scale.deep
    if not np.isfinite(values).all():
        raise ValueError("it has non-finite values")
    require_within(values, scale.deep, scale)
    return to_bytes(values, low, high)


def require_within(values: np.ndarray, found: Range, scale: Scale) -> None:
    """Raises InputError for values outside a range that was estimated from other images."""
    low, high = found
    least, most = extremes([values])
    if scale.found and not low <= least <= most <= high:
        raise InputError(
            f"values are from {least:g} to {most:g}, but {LOOKED_AT} other images suggest "
            f"{in_words(found)}: set data.range=[{min(low, least):g},{max(high, most):g}]"
        )


def require_whole_range(image: Image.Image, scale: Scale) -> None:
    """Raises InputError for a 16-bit color image that does not use the full range.

    Pillow reads only the upper 8 bits of color images. 12-bit content would keep only 16 levels.
    """
    whole = scale.found or scale.deep in (BYTES, USUAL_SCALE.deep)
    if not is_deep(image) and (scale.plain != BYTES or not whole):
        raise InputError(TOO_FEW_BITS)


def has_sixteen_bits(image: Image.Image) -> bool:
    """Whether the file has 16 bits per channel. Works before the image is loaded."""
    return any(name in str(tile) for tile in getattr(image, "tile", ()) for name in SIXTEEN)


def crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes an image to cover the target and crops the center.

    Raises ValueError if the aspect ratio is so extreme that the resized image is too large.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    large = round(image.width * scale), round(image.height * scale)
    require_size(*large)
    image = image.resize(large, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

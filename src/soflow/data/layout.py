"""Finds the splits and classes of a folder of images from the names of its files.

*.png                         no classes
cat/*.png  dog/*.png          classes cat and dog
Training/...  Testing/...     splits by any usual name, each with one of the layouts above
photos/photos/cat/*.png       single folders around class folders are skipped
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from soflow.data.splits import split_of, splits_among
from soflow.data.tree import normalized
from soflow.errors import InputError

#: Images outside of class folders or splits are left out if they are at most this fraction.
FEW = 0.1
#: Names of folders with images. Next to a folder in DESCRIPTIONS, they are not classes.
PICTURES = {"images", "image", "imgs", "img", "jpegimages", "leftimg8bit"}
#: Names of folders that are never classes. If all others have these names, `train` is a split.
NO_CLASSES = {"extra", "unlabeled", "unlabelled", "pred", "predict", "query", "gallery"}
#: The order in which splits are listed.
ORDER = ("train", "test", "validation")
DESCRIPTIONS = {
    "masks", "mask", "labels", "annotations", "segmentation", "segmentations", "gt", "groundtruth",
    "ground_truth", "segmentationclass", "segmentationobject", "gtfine",
}  # fmt: skip


@dataclass
class Part:
    """One split: the names of its images, their common folder ("" or "train/"), and notes."""

    prefix: str
    names: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def top(self, name: str) -> str:
        """The class folder of an image; "" for an image outside of class folders."""
        first, slash, _ = name.removeprefix(self.prefix).partition("/")
        return normalized(first) if slash else ""


def find_splits(names: Sequence[str], root: str) -> tuple[dict[str, Part], list[str]]:
    """The splits of image files by name, and notes on images that belong to no split.

    Args:
        names: The names of all image files, sorted.
        root: The name of the folder in messages.

    Raises:
        InputError: If it is ambiguous which folders are splits.
    """
    whole = inward(Part("", list(names)), through_splits=False)
    folders = by_folder(whole)
    direct = folders.pop("", [])
    here = f"{root}/{whole.prefix}".rstrip("/")
    inner = splits_among(list(folders))
    outer = [name for name in folders if name not in inner]
    if not inner or (set(inner.values()) == {"train"} and is_class(whole, inner, outer, here)):
        return {"train": whole}, []
    notes, splits = list(whole.notes), splits_by_name(inner, here)
    if outer and "train" not in splits and not has_folders(whole, outer, folders):
        # Class folders next to held-out splits, such as cat, dog and val.
        held_out = {name for folder in inner for name in folders[folder]}
        rest = Part(whole.prefix, [name for name in whole.names if name not in held_out])
        parts = {"train": inward(rest)}
        direct = []
    else:
        splits.update({name: name for name in outer})
        parts = {}
    for split in (*ORDER, *splits):
        if split in splits and split not in parts:
            parts[split] = inward(part_of(whole, splits[split], folders))
    if direct:
        if not few(direct, whole):
            found = f"{len(direct):,} images outside of its splits {' and '.join(inner)}"
            raise InputError(f"{here} has {found}: move them into one of the splits")
        notes.append(f"{counted(direct)} outside of the splits, such as {direct[0]}")
    return parts, notes


def inward(part: Part, through_splits: bool = True) -> Part:
    """Skips single folders around the class folders of a part, as in photos/photos/cat.

    A single folder that contains images directly is a class, unless its name shows that it is not.
    """
    while True:
        folders = by_folder(part)
        direct = folders.pop("", [])
        only = next(iter(folders), "")
        if len(folders) != 1 or not few(direct, part) or (split_of(only) and not through_splits):
            return part
        deeper = Part(f"{part.prefix}{only}/", folders[only], part.notes)
        outside = part.prefix.rstrip("/").rpartition("/")[2]
        no_class = normalized(only).casefold() in PICTURES or split_of(only) or only == outside
        flat = [name for name in deeper.names if not deeper.top(name)]
        if flat and not no_class and (len(flat) == len(deeper.names) or not few(flat, deeper)):
            return part
        if direct:
            deeper.notes += (
                f"{counted(direct)} outside of the folder {only}, such as {direct[0]}",
            )
        part = deeper


def few(names: Sequence[str], part: Part) -> bool:
    """Whether images outside of folders are so few that they can be left out."""
    return len(names) <= max(1, FEW * len(part.names))


def is_class(whole: Part, inner: dict[str, str], outer: Sequence[str], here: str) -> bool:
    """Whether the only folder with a name such as `train` is a class.

    `train` next to `car` and `plane` is a class if all of them contain images directly. Next to a
    single other folder, it may be a class or a split, and this raises InputError.
    """
    folders = by_folder(whole)
    others = [name for name in outer if name.casefold() not in NO_CLASSES]
    if len(inner) > 1 or not others or has_folders(whole, list(inner), folders):
        return False
    if len(outer) == 1 and not has_folders(whole, outer, folders):
        (train,) = inner
        raise InputError(
            f"{here} has the folders {outer[0]} and {train}, which may be a split or a class: set "
            f"data.path={here}/{train} to train only on it, or rename it if it is a class"
        )
    return True


def counted(names: Sequence[str]) -> str:
    return f"left out: {len(names):,} {'image' if len(names) == 1 else 'images'}"


def by_folder(part: Part) -> dict[str, list[str]]:
    """The images in each folder of a part, by the folder's exact name ("" for none)."""
    folders: dict[str, list[str]] = {}
    for name in part.names:
        first, slash, _ = name.removeprefix(part.prefix).partition("/")
        folders.setdefault(first if slash else "", []).append(name)
    return folders


def has_folders(whole: Part, chosen: Sequence[str], folders: dict[str, list[str]]) -> bool:
    """Whether one of the chosen folders has images in subfolders."""
    return any(
        "/" in name.removeprefix(f"{whole.prefix}{folder}/")
        for folder in chosen
        for name in folders[folder]
    )


def part_of(whole: Part, folder: str, folders: dict[str, list[str]]) -> Part:
    """The part of a folder below another part."""
    return Part(f"{whole.prefix}{folder}/", folders[folder])


def splits_by_name(inner: dict[str, str], here: str) -> dict[str, str]:
    """The folder of each split. A second folder for the same split keeps its own name."""
    splits: dict[str, str] = {}
    for name in sorted(inner, key=lambda name: name != inner[name]):  # exact names first
        split = inner[name]
        if split == "train" and "train" in splits:
            both = " and ".join(one for one in inner if inner[one] == "train")
            raise InputError(f"{here} has two training splits, {both}: merge them into one folder")
        splits[name if split in splits else split] = name
    return splits


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a split from its folders.

    Attributes:
        names: The class of each image by file name. Images without a class are left out.
        classes: The names of all classes.
        notes: Remarks on the images that were left out.
    """

    names: dict[str, str]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def class_folders(part: Part, empty: Sequence[str], where: str) -> ClassFolders:
    """The class of each image of a part.

    Args:
        part: A split.
        empty: The names of all folders without images.
        where: The name of the part in messages.

    Returns:
        The classes, empty without class folders.

    Raises:
        InputError: If too many images are outside of class folders.
    """
    tops = {name: part.top(name) for name in part.names}
    classes = sorted(set(tops.values()) - {""})
    if not classes:
        return ClassFolders({})
    stray = [name for name, top in tops.items() if not top]
    if not few(stray, part):
        raise InputError(
            f"{where} has {len(stray):,} images outside of its class folders, such as "
            f"{stray[0]}: move them, or set data.num_classes=0 to train on all without classes"
        )
    notes = []
    if stray:
        notes.append(f"{counted(stray)} outside of the class folders, such as {stray[0]}")
    inside = (name.removeprefix(part.prefix) for name in empty if name.startswith(part.prefix))
    hollow = [name for name in inside if "/" not in name]
    if hollow:
        notes.append(f"left out: folders without images, {', '.join(hollow[:5])}")
    kept = {name: top for name, top in tops.items() if top}
    return ClassFolders(kept, tuple(classes), tuple(notes))


def require_pictures(part: Part, where: str) -> None:
    """Raises InputError if folders contain images and their annotations, such as masks."""
    folders = list(by_folder(part))
    lowered = {name.casefold() for name in folders}
    if lowered & PICTURES and lowered & DESCRIPTIONS:
        pair = " and ".join(folders[:3])
        raise InputError(
            f"{where} has the folders {pair}, which do not look like classes: set data.path to the "
            "folder of images"
        )

"""The splits and classes of a folder of images, from the names of its files alone.

*.png                         no classes
cat/*.png  dog/*.png          classes cat and dog
Training/...  Testing/...     splits, each as above, by any usual name
photos/photos/cat/*.png       single folders are passed through
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from soflow.data.splits import split_of
from soflow.data.tree import normalized
from soflow.errors import InputError

#: Images beside class folders or splits are left out if they are at most this fraction.
FEW = 0.1
#: Folders that belong together, pictures and what describes them: they are not classes.
PICTURES = {"images", "image", "imgs", "img"}
#: The order in which splits are listed.
ORDER = ("train", "test", "validation")
DESCRIPTIONS = {
    "masks", "mask", "labels", "annotations", "segmentation", "segmentations", "gt", "groundtruth",
}  # fmt: skip


@dataclass
class Part:
    """One split: the names of its images, and the folder they are below ("" or "train/")."""

    prefix: str
    names: list[str] = field(default_factory=list)

    def top(self, name: str) -> str:
        """The class folder of an image; "" for an image beside the class folders."""
        first, slash, _ = name.removeprefix(self.prefix).partition("/")
        return normalized(first) if slash else ""


def find_splits(names: Sequence[str], root: str) -> tuple[dict[str, Part], list[str]]:
    """The splits of image files by name, and notes on what belongs to none.

    Args:
        names: The names of all image files, sorted.
        root: What messages call the folder.

    Raises:
        InputError: If it is not clear which folders are splits.
    """
    whole = Part("", list(names))
    while True:
        folders = by_folder(whole)
        direct = folders.pop("", [])
        inner = [name for name in folders if split_of(name)]
        only = next(iter(folders), "")
        through = len(folders) == 1 and not direct and not inner
        deeper = Part(f"{whole.prefix}{only}/", folders.get(only, []))
        if not through or any(not deeper.top(name) for name in deeper.names):
            break
        whole = deeper
    here = f"{root}/{whole.prefix}".rstrip("/")
    outer = [name for name in folders if name not in inner]
    classes_and_splits = len(inner) == 1 and outer
    if not inner or (classes_and_splits and not is_split(whole, inner[0], folders)):
        return {"train": whole}, []
    notes, splits = [], splits_by_name(inner, here)
    if classes_and_splits and "train" not in splits and not has_folders(whole, outer, folders):
        # Class folders beside one held-out split: cat, dog and val.
        held_out = set(folders[inner[0]])
        rest = [name for name in whole.names if name not in held_out]
        (split,) = splits
        return {"train": Part(whole.prefix, rest), split: part_of(whole, inner[0], folders)}, []
    splits.update({name: name for name in outer})
    parts = {
        name: part_of(whole, splits[name], folders) for name in (*ORDER, *splits) if name in splits
    }
    if direct:
        if len(direct) > max(1, FEW * len(whole.names)):
            found = f"{len(direct):,} images beside its splits, {' and '.join(inner)}"
            raise InputError(f"{here} has {found}: move them into one of the folders")
        notes.append(f"{counted(direct)} beside the splits, such as {direct[0]}")
    return parts, notes


def counted(names: Sequence[str]) -> str:
    return f"left out: {len(names):,} {'image' if len(names) == 1 else 'images'}"


def by_folder(part: Part) -> dict[str, list[str]]:
    """The images in each folder of a part, by the folder's name as it is spelled; "": in none."""
    folders: dict[str, list[str]] = {}
    for name in part.names:
        first, slash, _ = name.removeprefix(part.prefix).partition("/")
        folders.setdefault(first if slash else "", []).append(name)
    return folders


def is_split(whole: Part, folder: str, folders: dict[str, list[str]]) -> bool:
    """Whether the only folder with the name of a split is one: it then has folders of its own.

    `train` among `car` and `plane`, which all hold images directly, is a class.
    """
    return has_folders(whole, [folder], folders)


def has_folders(whole: Part, chosen: Sequence[str], folders: dict[str, list[str]]) -> bool:
    """Whether images lie in folders inside one of the chosen folders."""
    return any(
        "/" in name.removeprefix(f"{whole.prefix}{folder}/")
        for folder in chosen
        for name in folders[folder]
    )


def part_of(whole: Part, folder: str, folders: dict[str, list[str]]) -> Part:
    """The part of a folder below another part."""
    return Part(f"{whole.prefix}{folder}/", folders[folder])


def splits_by_name(inner: Sequence[str], here: str) -> dict[str, str]:
    """The folders of splits that have usual names. Of two tests, the second keeps its own name."""
    splits: dict[str, str] = {}
    for name in sorted(inner, key=lambda name: name != split_of(name)):  # exact names first
        split = str(split_of(name))
        if split == "train" and "train" in splits:
            both = " and ".join(one for one in inner if split_of(one) == "train")
            raise InputError(f"{here} has two training splits, {both}: put them into one folder")
        splits[name if split in splits else split] = name
    return splits


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a split by its folders.

    Attributes:
        names: The class of each image that is kept, by file name.
        classes: The names of all classes.
        notes: What was left out.
    """

    names: dict[str, str]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def class_folders(part: Part, empty: Sequence[str], where: str) -> ClassFolders:
    """The class of each image of a part.

    Args:
        part: A split.
        empty: The names of all folders without images.
        where: What messages call the part.

    Returns:
        Without class folders, no classes.

    Raises:
        InputError: If it is not clear whether folders are classes.
    """
    tops = {name: part.top(name) for name in part.names}
    classes = sorted(set(tops.values()) - {""})
    if not classes:
        return ClassFolders({})
    lowered = {name.casefold() for name in classes}
    if lowered & PICTURES and lowered & DESCRIPTIONS:
        pair = " and ".join(classes[:3])
        raise InputError(
            f"{where} has folders {pair}, which do not look like classes: set data.path to the "
            "folder of images"
        )
    stray = [name for name, top in tops.items() if not top]
    if len(stray) > max(1, FEW * len(tops)):
        raise InputError(
            f"{where} has {len(stray):,} images beside its class folders, such as "
            f"{stray[0]}: set data.num_classes=0 to train on all without classes, or move them"
        )
    notes = []
    if stray:
        notes.append(f"{counted(stray)} beside the class folders, such as {stray[0]}")
    inside = (name.removeprefix(part.prefix) for name in empty if name.startswith(part.prefix))
    hollow = [name for name in inside if "/" not in name]
    if hollow:
        notes.append(f"left out: folders without images, {', '.join(hollow[:5])}")
    kept = {name: top for name, top in tops.items() if top}
    return ClassFolders(kept, tuple(classes), tuple(notes))

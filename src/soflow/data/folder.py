"""A folder of images, with or without a subfolder for each class.

FOLDER/*.png                    no classes
FOLDER/cat/*.png  FOLDER/dog/   classes cat and dog
FOLDER/train/...  FOLDER/test/  splits, each as above, if no other folder has images
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from soflow.config.schema import DataConfig
from soflow.data.content import File, file_of, of_folder
from soflow.data.images import ENDINGS, SPLITS, Images, Opener, open_image
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError


class FolderImages:
    """The images of one split of a folder."""

    def __init__(self, path: str, split: str) -> None:
        root = Path(path)
        if not path:
            raise InputError("data.source=folder needs data.path: a folder of images")
        if not root.is_dir():
            raise InputError(
                f"data.path={path} is no folder: give one that holds images ({', '.join(ENDINGS)})"
            )
        there = splits_of(root)
        if split not in there:
            hint = (
                ""
                if len(there) > 1
                else ", all that lies in it; others are made by subfolders train and test"
            )
            raise InputError(
                f"{path} has no split '{split}': its splits are {' and '.join(there)}{hint}"
            )
        self.root = there[split]
        self.name, self.split = root.resolve().name, split
        listed = sorted(files(self.root))
        if not listed:
            raise InputError(
                f"{self.root} has no images: files that end in {', '.join(ENDINGS)} are read"
            )
        self.files = [file.name for file in listed]
        self.fingerprint = of_folder(self.root, listed)
        self.labels, self.class_names, self.unlabelled = self.classes(
            class_folders(there.get("train", self.root))
        )

    def classes(self, names: tuple[str, ...]) -> tuple[list[int] | None, tuple[str, ...], str]:
        """The class of each image, the names, and why there are no classes where there might be.

        The names are those of the split train, so that a class has the same number in every split; others may lack some.
        """
        if not names:
            return None, (), f"{self.root} has no subfolders, one for each class"
        numbers = {name: number for number, name in enumerate(names)}
        tops = [file.split(os.sep)[0] if os.sep in file else "" for file in self.files]
        if "" in tops:
            lost = self.files[tops.index("")]
            return None, (), f"{self.root} has images beside its class folders, such as {lost}"
        strange = sorted(set(tops) - set(names))
        if strange:
            return (
                None,
                (),
                f"{self.root} has a class folder '{strange[0]}', which the split train has not",
            )
        empty = sorted(name for name in set(names) - set(tops) if (self.root / name).is_dir())
        if empty:
            return (
                None,
                (),
                f"the class folder {self.root / empty[0]} has no images: fill it or delete it",
            )
        return [numbers[top] for top in tops], names, ""

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        return str(self.root / self.files[row])

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(open_image, self.root / self.files[row]) for row in rows]


@SOURCES.register("folder")
class Folder(ImageSource):
    """A folder of images."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(splits_of(Path(config.path)))

    def open(self, config: DataConfig, split: str) -> Images:
        return FolderImages(config.path, split)


def splits_of(root: Path) -> dict[str, Path]:
    """Split -> its folder, by names in either case; everything is the split train where the subfolders are classes.

    Subfolders are splits where all that hold images are called so. One that is called so among others is a class of that
    name, as `train` among cars and planes. Raises InputError where that may be meant either way.
    """
    names = class_folders(root)
    splits = [name for name in names if name.lower() in SPLITS]
    if not splits:
        return {"train": root}
    others = [name for name in names if name not in splits and next(files(root / name), None)]
    if others and len(splits) > 1:
        raise InputError(
            f"{root} has splits, {' and '.join(splits)}, beside another folder of images, {others[0]}: "
            "move that elsewhere, or them"
        )
    if len({name.lower() for name in splits}) < len(splits):
        raise InputError(
            f"{root} has one split twice, {' and '.join(splits)}: put their images into one folder"
        )
    if others:
        return {"train": root}
    found = {name.lower(): root / name for name in splits}
    return {name: found[name] for name in SPLITS if name in found}


def class_folders(root: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not hidden(entry.name)
        )
    )


def hidden(name: str) -> bool:
    """Such as .git or the __MACOSX of archives."""
    return name.startswith((".", "__"))


def files(root: Path) -> Iterator[File]:
    """Every image below a folder, by its path from there. Links to folders are followed once each, after all folders that
    are none: what can be reached both ways is found where it lies. Pipes and the like are no images.
    """
    seen: set[str] = set()
    links: deque[str] = deque()

    def walk(folder: str) -> Iterator[File]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
            elif entry.is_dir():
                links.append(entry.path)
            elif entry.name.lower().endswith(ENDINGS) and (entry.is_file() or leads_nowhere(entry)):
                stat = (
                    entry.stat() if entry.is_file() else os.lstat(entry.path)
                )  # a link to nothing is a broken image
                yield file_of(os.path.relpath(entry.path, root), stat)

    yield from walk(str(root))
    while links:
        yield from walk(links.popleft())


def leads_nowhere(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)

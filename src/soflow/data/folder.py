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
from soflow.data.file_fingerprints import File, file_of, fingerprint_of_folder
from soflow.data.images import ENDINGS, SPLITS, Images, Opener, open_image, require_split
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError
from soflow.system.text import printable


@SOURCES.register("folder")
class Folder(ImageSource):
    """A folder of images."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(splits_of(Path(config.path)))

    def open(self, config: DataConfig, split: str) -> Images:
        return FolderImages(config.path, split)


class FolderImages:
    """The images of one split of a folder."""

    def __init__(self, path: str, split: str) -> None:
        root = Path(path)
        if not path:
            raise InputError("data.source=folder needs data.path: a folder of images")
        endings = ", ".join(ENDINGS)
        if not root.is_dir():
            raise InputError(f"data.path={path} is not a folder: name one with images ({endings})")
        splits = splits_of(root)
        require_split(split, tuple(splits), f"{path} (subfolders train and test make splits)")
        self.root = splits[split]
        self.name, self.split = printable(root.resolve().name), split
        found = sorted(files(self.root))
        if not found:
            raise InputError(f"{self.root} has no images: files that end in {endings} are read")
        self.files = [file.name for file in found]
        self.fingerprint = fingerprint_of_folder(self.root, found)
        # Classes are those of the split train, so that they have the same number in every split.
        names = class_folders(splits.get("train", self.root))
        self.labels, self.unlabelled = self.classes(names)
        self.class_names = tuple(map(printable, names)) if self.labels is not None else ()

    def classes(self, names: Sequence[str]) -> tuple[list[int] | None, str]:
        """The class of each image, or None and the reason."""
        if not names:
            return None, f"{self.root} has no subfolders, one for each class"
        numbers = {name: number for number, name in enumerate(names)}
        tops = [file.split(os.sep)[0] if os.sep in file else "" for file in self.files]
        if "" in tops:
            file = self.files[tops.index("")]
            return None, f"{self.root} has images beside its class folders, such as {file}"
        unknown = sorted(set(tops) - set(names))
        if unknown:
            return None, f"{self.root} has a class folder '{unknown[0]}' that the split train lacks"
        empty = sorted(name for name in set(names) - set(tops) if (self.root / name).is_dir())
        if empty:
            return None, f"the class folder {self.root / empty[0]} has no images: fill or delete it"
        return [numbers[top] for top in tops], ""

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        return str(self.root / self.files[row])

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(open_image, self.root / self.files[row]) for row in rows]


def splits_of(root: Path) -> dict[str, Path]:
    """The folder of each split, in upper or lower case.

    Subfolders are splits if all subfolders with images have names of splits. A single one among
    others is a class of that name, such as `train` among cars and planes; then everything is the
    split train. Raises InputError if it is not clear which.
    """
    names = class_folders(root)
    splits = [name for name in names if name.lower() in SPLITS]
    if not splits:
        return {"train": root}
    others = [name for name in names if name not in splits and next(files(root / name), None)]
    both = " and ".join(splits)
    if others and len(splits) > 1:
        found = f"splits, {both}, and another folder of images, {others[0]}"
        raise InputError(f"{root} has {found}: move one or the other elsewhere")
    if len({name.lower() for name in splits}) < len(splits):
        raise InputError(f"{root} has one split twice, {both}: put their images into one folder")
    if others:
        return {"train": root}
    return {split: root / name for split in SPLITS for name in splits if name.lower() == split}


def class_folders(root: Path) -> list[str]:
    folders = (entry.name for entry in os.scandir(root) if entry.is_dir())
    return sorted(name for name in folders if not hidden(name))


def hidden(name: str) -> bool:
    """Such as .git, or __MACOSX in archives."""
    return name.startswith((".", "__"))


def files(root: Path) -> Iterator[File]:
    """Every image below a folder, by its path from there.

    Links to folders are followed once each, after all real folders, so that files reached both
    ways are found where they are. Pipes are no images; a broken link is an unreadable image.
    """
    seen: set[str] = set()
    links = deque([str(root)])

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
            elif entry.name.lower().endswith(ENDINGS):
                broken = entry.is_symlink() and not os.path.exists(entry.path)
                if entry.is_file() or broken:
                    stat = entry.stat(follow_symlinks=not broken)
                    yield file_of(os.path.relpath(entry.path, root), stat)

    while links:
        yield from walk(links.popleft())

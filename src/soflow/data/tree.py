"""Lists the image files below a folder or in a zip file.

Names are relative, with "/" on every system. Hidden folders, and folders that file systems and NAS
systems create for themselves, are ignored.
"""

import io
import os
import unicodedata
import zipfile
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from soflow.data.file_fingerprints import File, file_of, fingerprint_of_folder
from soflow.data.images import ENDINGS, Opener, open_image
from soflow.data.npz import UNREADABLE, require_in_proportion
from soflow.errors import InputError, first_line
from soflow.system.fingerprints import fingerprint_of

#: Folders created by file systems, NAS systems and archive programs, in lower case.
SYSTEM_FOLDERS = (
    "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot",
    "~snapshot", "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found",
    "found.000", "network trash folder", "temporary items", "__macosx", "__pycache__",
)  # fmt: skip
#: Names of files that may contain the labels of images.
LABEL_FILES = ("metadata.csv", "metadata.jsonl", "dataset.json")
#: The maximum bytes of a file in a zip file.
MOST_BYTES = 2**30


@runtime_checkable
class Tree(Protocol):
    """The files in a folder or a zip file.

    Attributes:
        root: The folder or the zip file.
        images: The image files, sorted by name.
        folders: The names of all folders, including folders without images.
        label_files: The names of files that may contain labels.
        others: The number of other files by extension.
    """

    root: Path
    images: list[File]
    folders: set[str]
    label_files: list[str]
    others: Counter[str]

    def where(self, name: str) -> str: ...
    def read(self, name: str) -> bytes: ...
    def opener(self, name: str) -> Opener: ...
    def fingerprint(self, files: Sequence[File]) -> str: ...


def open_tree(path: str) -> Tree:
    """Lists a folder or a zip file. Raises InputError if the path is neither of them."""
    root = Path(path)
    if not path:
        raise InputError("data.source=folder needs data.path: a folder or a .zip file of images")
    if root.is_dir():
        return FolderTree(root)
    if root.is_file() and root.suffix.lower() == ".zip":
        return ZipTree(root)
    what = "is neither a folder nor a .zip file" if root.exists() else "does not exist"
    raise InputError(f"data.path={path} {what}: set it to a folder of images")


def is_system(name: str) -> bool:
    """Whether a folder or file is hidden or belongs to the system, such as .git or @eaDir."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def normalized(name: str) -> str:
    """A name in composed Unicode form (NFC). Some macOS file systems use the decomposed form."""
    return unicodedata.normalize("NFC", name)


class Listing:
    """The files found so far."""

    def __init__(self) -> None:
        self.images: list[File] = []
        self.folders: set[str] = set()
        self.label_files: list[str] = []
        self.others: Counter[str] = Counter()

    def is_image(self, name: str) -> bool:
        """Whether a file is an image, by its extension. Counts other files."""
        last = name.rsplit("/", 1)[-1].lower()
        if last in LABEL_FILES:
            self.label_files.append(name)
        elif last.endswith(ENDINGS):
            return True
        else:
            self.others[PurePosixPath(last).suffix or "without an extension"] += 1
        return False


class FolderTree(Listing):
    """The files below a folder.

    Each link to a folder is followed once, after all real folders, so that a file that can be
    reached both ways is listed in its real folder. Pipes are ignored. A broken link counts as an
    unreadable image.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.seen: set[str] = set()
        self.folders_to_read = deque([str(root)])
        self.links: deque[str] = deque()
        while waiting := self.folders_to_read or self.links:
            self.read_folder(waiting.popleft())
        self.images.sort()

    def read_folder(self, folder: str) -> None:
        real = os.path.realpath(folder)
        if real in self.seen:
            return
        self.seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            todo = f"make it readable, or move it out of {self.root}"
            raise InputError(
                f"the folder {folder} cannot be read ({error.strerror}): {todo}"
            ) from None
        inside = os.path.relpath(folder, self.root).replace(os.sep, "/")
        for entry in entries:
            if is_system(entry.name):
                continue
            name = entry.name if inside == "." else f"{inside}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                self.folders.add(name)
                self.folders_to_read.append(entry.path)
            elif os.path.isdir(entry.path):  # a link
                self.folders.add(name)
                self.links.append(entry.path)
            else:
                self.add_file(entry, name)

    def add_file(self, entry: os.DirEntry[str], name: str) -> None:
        broken = entry.is_symlink() and not os.path.exists(entry.path)
        if (broken or os.path.isfile(entry.path)) and self.is_image(name):
            self.images.append(file_of(name, entry.stat(follow_symlinks=not broken)))

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def opener(self, name: str) -> Opener:
        return partial(open_image, self.root / name)

    def fingerprint(self, files: Sequence[File]) -> str:
        return fingerprint_of_folder(self.root, files)


class ZipTree(Listing):
    """The files in a zip file. Nothing is unpacked to disk."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        try:
            self.archive = zipfile.ZipFile(root)
        except UNREADABLE as error:
            raise InputError(f"{root} is not a zip file: {first_line(error)}") from None
        self.members: dict[str, zipfile.ZipInfo] = {}
        for member in self.archive.infolist():
            # Some programs write ./cat/1.png, /cat/1.png or cat\1.png.
            parts = [x for x in member.filename.replace("\\", "/").split("/") if x not in ("", ".")]
            if any(is_system(part) for part in parts):
                continue
            is_folder = member.filename.endswith(("/", "\\"))
            ends = range(1, len(parts) + is_folder)
            self.folders.update("/".join(parts[:end]) for end in ends)
            name = "/".join(parts)
            if not is_folder and name not in self.members:
                self.add_member(name, member)
        self.images.sort()

    def add_member(self, name: str, member: zipfile.ZipInfo) -> None:
        if member.flag_bits & 1:
            raise InputError(f"{self.root} is encrypted: unpack it and use the folder")
        self.members[name] = member
        if self.is_image(name):
            self.images.append(File(name, member.file_size, 0, 0, 0))

    def where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file. Raises one of UNREADABLE, also if the file expands too much."""
        member = self.members[name]
        if member.file_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        require_in_proportion(member.file_size, member.compress_size)
        return self.archive.read(member)

    def opener(self, name: str) -> Opener:
        return lambda: open_image(io.BytesIO(self.read(name)))

    def fingerprint(self, files: Sequence[File]) -> str:
        """A fingerprint of the names, sizes and checksums recorded in the zip file."""
        lines = (f"{one.name} {one.size} {self.members[one.name].CRC}" for one in files)
        return fingerprint_of("\n".join(lines))

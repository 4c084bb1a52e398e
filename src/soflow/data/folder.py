"""Images in a folder or a zip file. layout.py finds the splits and classes."""

from collections import Counter
from collections.abc import Sequence

from soflow.config.schema import DataConfig
from soflow.data.images import FORMATS, Images, Opener
from soflow.data.label_files import labels_beside
from soflow.data.layout import Part, class_folders, find_splits, require_pictures
from soflow.data.registry import SOURCES, ImageSource
from soflow.data.splits import named_split
from soflow.data.tree import Tree, open_tree
from soflow.errors import InputError
from soflow.system.text import printable


@SOURCES.register("folder")
class Folder(ImageSource):
    """A folder or zip file of images."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        tree = open_tree(config.path)
        return tuple(splits_of(tree)[0])

    def open(self, config: DataConfig, split: str) -> Images:
        return FolderImages(config.path, split, config.num_classes != 0, config.label_column)


class FolderImages:
    """The images of one split of a folder.

    Args:
        path: The folder or zip file.
        split: The split, by any usual name.
        labelled: Whether to find classes. If not, images outside of class folders are also used.
        label_column: The column of classes in metadata.csv or metadata.jsonl.
    """

    def __init__(
        self, path: str, split: str, labelled: bool = True, label_column: str = ""
    ) -> None:
        self.tree = open_tree(path)
        splits, notes = splits_of(self.tree)
        hint = "splits are subfolders such as train and test"
        self.split = named_split(split, tuple(splits), f"{path} ({hint})")
        part = splits[self.split]
        self.name = printable(self.tree.root.resolve().stem)
        self.files, self.notes = part.names, [*notes, *part.notes]
        require_pictures(part, self.tree.where(part.prefix).rstrip("/"))
        self.labels: list[int] | None = None
        self.class_names: tuple[str, ...] = ()
        self.unlabelled, self.from_file = "data.num_classes is 0", False
        if labelled:
            self.find_classes(part, splits.get("train", part), label_column)
        self.count_others(splits)
        self.notes, self.unlabelled = [*map(printable, self.notes)], printable(self.unlabelled)
        known = {file.name: file for file in self.tree.images}
        content = self.tree.fingerprint([known[name] for name in self.files])
        self.fingerprint = f"{content} {self.labels}" if self.from_file else content

    def find_classes(self, part: Part, train: Part, column: str) -> None:
        """Finds the class of each image: from a file of labels, or else from class folders."""
        where = self.tree.where(part.prefix).rstrip("/")
        names: tuple[str, ...] = ()
        if part is not train:
            beside, _ = labels_beside(self.tree, train.names, column, ())
            names = beside.names if beside else ()
        found, notes = labels_beside(self.tree, part.names, column, names)
        self.notes += notes
        if found is not None:
            self.labels, self.class_names = found.labels, tuple(map(printable, found.names))
            self.unlabelled = found.reason
            self.from_file = True
            return
        if column:
            raise InputError(
                f"data.label_column is '{column}', but {where} has no metadata.csv: leave it out"
            )
        names_of_all = (file.name for file in self.tree.images)
        with_images = {name[:end] for name in names_of_all for end in slashes(name)}
        empty = sorted(self.tree.folders - with_images)
        folders = class_folders(part, empty, where)
        classes = folders.classes
        if part is not train:
            classes = class_folders(train, (), self.tree.where(train.prefix)).classes
        if not folders.classes or not classes:
            self.unlabelled = f"{where} has no class folders (one subfolder per class)"
            return
        self.notes += folders.notes
        if unknown := sorted(set(folders.classes) - set(classes)):
            self.unlabelled = (
                f"{where} has a class folder '{unknown[0]}' that is not in the split train"
            )
            return
        self.files = list(folders.names)
        self.labels = [classes.index(folders.names[name]) for name in self.files]
        self.class_names = tuple(map(printable, classes))

    def count_others(self, splits: dict[str, Part]) -> None:
        """Adds notes on files and splits that are left out."""
        if self.tree.others:
            most = Counter(self.tree.others).most_common(5)
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in most)
            self.notes.append(f"left out: files that are not images: {kinds}")
        others = [f"{name} ({len(x.names):,})" for name, x in splits.items() if name != self.split]
        if others:
            self.notes.append(f"not trained on: the splits {', '.join(others)}")

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        return self.tree.where(self.files[row])

    def openers(self, rows: range) -> Sequence[Opener]:
        return [self.tree.opener(self.files[row]) for row in rows]


def splits_of(tree: Tree) -> tuple[dict[str, Part], list[str]]:
    """The splits of a tree, with notes. Raises InputError if there are no images."""
    if not tree.images:
        others = ", ".join(f"{n:,} {ending}" for ending, n in tree.others.most_common(5))
        read = ", ".join(first for first, *_ in FORMATS.values())
        raise InputError(
            f"{tree.root} has no images"
            + (f", only {others}" if others else "")
            + f": supported files are {read}"
        )
    return find_splits([file.name for file in tree.images], str(tree.root))


def slashes(name: str) -> list[int]:
    """The positions of the slashes in a name."""
    return [place for place, letter in enumerate(name) if letter == "/"]

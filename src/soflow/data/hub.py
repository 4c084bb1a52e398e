"""Opens Hugging Face datasets: by name from the Hub, or from local parquet and arrow files.

No code in a dataset is run, and no file outside its folder is opened.
"""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import Field

from soflow.data.file_fingerprints import file_of, fingerprint_of_folder
from soflow.errors import InputError, first_line
from soflow.system.packages import optional_package
from soflow.system.records import Record

#: Builders of the package `datasets` for local files, by file extension.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
#: Seconds to wait for a connection to the Hub before it counts as unreachable.
PATIENCE = 1.5
#: Folders whose files may be opened.
Roots = tuple[Path, ...]


class SavedSplits(Record):
    """dataset_dict.json, as written by save_to_disk."""

    splits: list[str]


class SavedFile(Record):
    """A file listed in state.json."""

    filename: str


class SavedState(Record):
    """state.json of a split, as written by save_to_disk."""

    files: list[SavedFile] = Field(alias="_data_files")


def open_splits(path: str, subset: str = "", revision: str = "") -> Any:
    """Opens all splits with the package `datasets`, memory-mapped and not decoded.

    Args:
        path: Local files, or a name on the Hub.
        subset: The configuration of a dataset that has several.
        revision: A branch, tag or commit on the Hub.

    Raises:
        InputError: If the data cannot be read.
    """
    if not path:
        raise InputError("data.source=huggingface needs data.path: a Hub name, or a parquet folder")
    place = Path(path)
    if not place.exists():
        require_hub_name(path)
    datasets = optional_package("datasets", "data.source=huggingface needs", "data")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if not place.exists():
        return opened(path, subset, revision, "")
    if revision:
        raise InputError(f"data.revision does not apply to local data ({path}): leave it out")
    # The fingerprint makes sure that changed files are read again within one process.
    return opened(path, subset, "", fingerprint_of(place))


@lru_cache(maxsize=8)
def opened(path: str, subset: str, revision: str, content: str) -> Any:
    """The splits of local files with the fingerprint `content`, or of a dataset on the Hub."""
    import datasets

    place = Path(path)
    # Spark writes folders whose names have such extensions.
    builder = None if place.is_dir() else BUILDERS.get(place.suffix.lower())
    try:
        # Versions before 4 can run scripts in a dataset.
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            if subset:
                raise InputError(
                    f"{path} was written by save_to_disk and has no subsets: leave out data.subset"
                )
            require_inside(place)
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, dict) else {"train": saved}
        if not content:
            return datasets.load_dataset(path, subset or None, revision=revision or None)
        about: dict[str, Any] = {"data_files": path} if builder else {"name": subset or None}
        if subset:  # described by the dataset card
            about["cache_dir"] = os.path.join(datasets.config.HF_DATASETS_CACHE, content)
        else:
            about["description"] = content
        made = datasets.load_dataset_builder(builder or path, **about)
        for file in chain.from_iterable((made.config.data_files or {}).values()):
            inside(roots_of(path), file)  # a dataset card may refer to any file
        made.download_and_prepare()
        return made.as_dataset()
    except InputError:
        raise
    except Exception as error:  # readers, the file system and the network raise any exception
        if (subsets := subsets_of(path, revision)) and subset not in subsets:
            wrong = f"has no subset '{subset}', only" if subset else "has several subsets,"
            known = f"data.path={path} {wrong} {', '.join(subsets)}"
            raise InputError(f"{known}: set data.subset={subsets[0]}") from None
        question = "" if os.path.exists(path) else ask_similar(path)
        wrong = f"data.path={path} cannot be read: {first_line(error)}"
        raise InputError(f"{wrong}; {question}" if question else wrong) from None


def subsets_of(path: str, revision: str) -> list[str]:
    """The subsets of a dataset; [] if it has only the default one or cannot be read."""
    import datasets

    with suppress(Exception):
        found = datasets.get_dataset_config_names(path, revision=revision or None)
        return [] if found == ["default"] else list(found)
    return []


def require_hub_name(path: str) -> None:
    """Raises InputError if a path cannot be a name on the Hub, or the Hub cannot be reached."""
    constants = optional_package(
        "huggingface_hub.constants", "data.source=huggingface needs", "data"
    )
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    question = ask_similar(path)
    if looks_local or Path(path).suffix.lower() in BUILDERS:
        raise InputError(f"data.path={path} does not exist: {question or 'check the path'}")
    if constants.HF_HUB_OFFLINE:
        return
    if not answers(constants.ENDPOINT):
        raise InputError(
            f"data.path={path} does not exist here, and {constants.ENDPOINT} cannot be reached: "
            + (question or "check the path, or set HF_HUB_OFFLINE=1 to use data downloaded before")
        )


def ask_similar(path: str) -> str:
    """A question that suggests a similar path in the same folder, or an empty string."""
    folder, name = os.path.split(path.rstrip("/\\"))
    with suppress(OSError):
        for one in get_close_matches(name, os.listdir(folder or "."), 1, 0.7):
            return f"did you mean {os.path.join(folder, one)}?"
    return ""


def answers(address: str) -> bool:
    """Whether a server, or the proxy for it, accepts a connection within `PATIENCE` seconds."""
    parts = urlsplit(getproxies().get(urlsplit(address).scheme) or address)
    port = parts.port or {"http": 80}.get(parts.scheme, 443)

    def connect() -> bool:
        with socket.create_connection((parts.hostname or "", port), timeout=PATIENCE):
            return True

    found: list[bool] = []
    with suppress(OSError):
        # In a thread, since the timeout does not cover the name lookup.
        thread = Thread(target=lambda: found.append(attempt(connect)), daemon=True)
        thread.start()
        thread.join(PATIENCE)
    return found == [True]


def attempt(connect: Callable[[], bool]) -> bool:
    try:
        return connect()
    except OSError:
        return False


def require_inside(folder: Path) -> None:
    """Raises ValueError if files of save_to_disk refer to files outside the folder."""
    saved = SavedSplits.read(folder / "dataset_dict.json")
    for split in ["."] if saved is None else saved.splits:
        state = SavedState.read(inside((folder,), os.path.join(split, "state.json")))
        for file in [] if state is None else state.files:
            inside((folder,), os.path.join(split, file.filename))


def fingerprint_of(place: Path) -> str:
    """A content fingerprint of local files. That of `datasets` covers only paths and times."""
    root, found = (place, sorted(place.rglob("*"))) if place.is_dir() else (place.parent, [place])
    files = [file_of(str(one.relative_to(root)), one.stat()) for one in found if one.is_file()]
    return fingerprint_of_folder(root, files)


def roots_of(path: str) -> Roots:
    """The folder of local data, or the download folders for data from the Hub."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if Path(path).exists():
        return (Path(path) if Path(path).is_dir() else Path(path).parent,)
    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return tuple(map(Path, caches))


def inside(roots: Roots, path: str) -> Path:
    """Resolves a path, relative to roots[0]. Raises ValueError if it lies outside all roots."""
    file = Path(os.path.abspath(roots[0] / path))
    places = (place(root) for root in roots for place in (os.path.abspath, os.path.realpath))
    if not any(file.is_relative_to(place) for place in places):
        raise ValueError(f"{path} is outside {roots[0]}: it is not opened")
    return file

"""Locks: one trainer per run folder and per process.

The operating system releases the lock of a folder when its process ends.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from soflow.errors import RunError
from soflow.system.atomic import require_writable, write_text

#: torch's random state and Accelerate's state are global, so a process trains one run at a time.
_training = threading.Lock()


@contextmanager
def only_trainer_of(folder: Path) -> Iterator[None]:
    """Holds the lock of the folder. Creates the folder if needed, and removes it if it stays empty.

    Raises:
        RunError: If another process holds the lock, or this process is already training.
        InputError: If the folder is not writable.
    """
    if not _training.acquire(blocking=False):
        raise RunError(
            f"cannot train {folder}, because this process is already training: wait for it to "
            "finish, or use another process"
        )
    try:
        with lock_of(folder):
            yield
    finally:
        _training.release()


@contextmanager
def lock_of(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; see `only_trainer_of`."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    require_writable(folder)
    owner, place = folder / ".trainer", folder / ".lock"
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder} is being trained by {name_in(owner)}: wait for it to finish, stop it, or "
            "choose another folder with --out"
        ) from None
    # filelock before version 4 raises NotImplementedError on file systems without locks.
    except (NotImplementedError, OSError) as error:
        raise RunError(
            f"cannot lock {folder} ({error}): choose a folder on another file system with --out"
        ) from None
    name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}"
    try:
        with suppress(RunError):  # on a full disk, messages name no owner
            write_text(owner, name)
        yield
    finally:
        with suppress(OSError):  # another process may have removed or used the folder
            if name_in(owner) == name:
                owner.unlink()
            if list(folder.iterdir()) == [place]:
                place.unlink()
                for empty in made:
                    empty.rmdir()
        lock.release()


def name_in(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8")[:200].strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"

"""One trainer per run folder, and per process.

The system releases the lock of a folder when its process ends.
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

#: Torch's random numbers and Accelerate's state are those of a process: one training at a time.
_training = threading.Lock()


@contextmanager
def only_trainer_of(folder: Path) -> Iterator[None]:
    """Makes the folder if needed, and holds its lock. A folder made only for the lock is removed.

    Raises:
        RunError: If another process has the lock; it is named. If this process is training already.
        InputError: If the folder cannot be written.
    """
    if not _training.acquire(blocking=False):
        raise RunError(
            f"cannot train {folder}: this process is training already; wait for it, or use another "
            "process"
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
            f"{folder} is being trained by {name_in(owner)}: wait for it, stop it, or choose "
            "another folder with --out"
        ) from None
    # filelock before version 4 raises NotImplementedError on disks without locks.
    except (NotImplementedError, OSError) as error:
        raise RunError(
            f"cannot lock {folder} ({error}): choose a folder on another file system with --out"
        ) from None
    name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}"
    try:
        with suppress(RunError):  # on a full disk, the next one is refused without a name
            write_text(owner, name)
        yield
    finally:
        with suppress(OSError):  # another process removed or used it
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

"""One trainer to a run folder. The system holds the lock for as long as its process lives, and no longer."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from soflow.errors import RunError
from soflow.system.atomic import require_writable, write_text


@contextmanager
def only_trainer_of(folder: Path) -> Iterator[None]:
    """Makes the folder, if need be, and holds its lock. Raises RunError, naming the process that has it, where that is
    another; InputError where the folder cannot be written. A folder that was made to be locked, and no more, does not stay.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    require_writable(folder)
    owner, place = folder / ".trainer", folder / ".lock"
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder} is being trained by {name_in(owner)}: wait for it, stop it, or choose another folder with --out"
        ) from None
    except (
        NotImplementedError,
        OSError,
    ) as error:  # the former from a filelock before 4, where a disk knows no locks
        raise RunError(
            f"cannot lock {folder} ({error}): choose a folder on another file system with --out"
        ) from None
    name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}"
    try:
        with suppress(RunError):  # a full disk: then the next one is refused without a name
            write_text(owner, name)
        yield
    finally:
        with suppress(OSError):  # what somebody else has removed, or made use of
            if name_in(owner) == name:
                owner.unlink()
            if list(folder.iterdir()) == [place]:
                place.unlink()
                for empty in made:
                    empty.rmdir()
        lock.release()


def name_in(owner: Path) -> str:
    try:
        return owner.read_text()[:200].strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"

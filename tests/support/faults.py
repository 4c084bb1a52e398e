"""A simulated disk on which one operation below a folder fails.

Counted operations: opening a file for writing, write, flush, fsync, mkdir, rename, removal.
"""

import builtins
import errno
import io
import os
import signal
from contextlib import contextmanager

import pytest

ENOSPC, EIO, SHORT, KILL = "ENOSPC", "EIO", "short write", "kill"
FAULTS = (ENOSPC, EIO, SHORT)
CALLS = ("mkdir", "replace", "rename", "fsync", "rmdir", "unlink", "remove", "open")


class Disk:
    """Counts the operations below `root`. Operation number `at`, counted from 0, fails.

    With `lasting`, all later writes also fail. A failed write writes half of its bytes. A short
    write also writes half, but returns the number of bytes like the operating system and raises
    nothing.
    """

    def __init__(self, root, at=None, fault=ENOSPC, lasting=False):
        self.root, self.at, self.fault, self.lasting = os.path.realpath(root), at, fault, lasting
        self.operations = []

    def concerns(self, path, dir_fd=None):
        if not isinstance(path, str | os.PathLike):
            return False
        folder = f"/proc/self/fd/{dir_fd}" if dir_fd is not None else ""  # rmtree's form
        return os.path.realpath(os.path.join(folder, path)).startswith(self.root)

    def goes_wrong(self, what):
        """Counts an operation. Returns whether it fails. A full disk still allows removals."""
        number = len(self.operations)
        self.operations.append(what)
        if self.at is None or (self.fault == SHORT and what != "write"):
            return False
        return number == self.at or (
            self.lasting and number > self.at and what in ("write", "mkdir", "open")
        )

    def fail(self):
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.EIO if self.fault == EIO else errno.ENOSPC
        raise OSError(number, os.strerror(number))

    @contextmanager
    def in_place(self):
        """Inside the block, all operations below the root use this disk."""
        real_open, threads_open = io.open, builtins.open
        with pytest.MonkeyPatch.context() as patch:

            def opened(file, mode="r", *arguments, **options):
                if not (set(mode) & set("wax+") and self.concerns(file)):
                    return real_open(file, mode, *arguments, **options)
                if self.goes_wrong("open"):
                    self.fail()
                return Stream(self, real_open(file, mode, *arguments, **options))

            def through(name, real):
                def call(first, *arguments, **options):
                    writes = name != "open" or (
                        arguments and arguments[0] & (os.O_WRONLY | os.O_RDWR)
                    )
                    below = (
                        isinstance(first, int)
                        if name == "fsync"
                        else self.concerns(first, options.get("dir_fd"))
                    )
                    if writes and below and self.goes_wrong(name):
                        self.fail()
                    return real(first, *arguments, **options)

                return call

            assert threads_open is real_open
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            for name in CALLS:
                patch.setattr(os, name, through(name, getattr(os, name)))
            yield self


class Stream:
    """An open file. Its writes are operations of the disk."""

    def __init__(self, disk, stream):
        self.disk, self.stream = disk, stream

    def write(self, data):
        if self.disk.goes_wrong("write"):
            half = (
                data[: len(data) // 2]
                if isinstance(data, str)
                else memoryview(data).cast("B")[: len(data) // 2]
            )
            self.stream.write(half)
            if self.disk.fault == SHORT:
                return len(half)
            self.stream.flush()
            self.disk.fail()
        return self.stream.write(data)

    def flush(self):
        if self.disk.goes_wrong("flush"):
            self.disk.fail()
        self.stream.flush()

    def truncate(self, *arguments):
        return self.stream.truncate(*arguments)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stream.close()

    def __iter__(self):
        return iter(self.stream)


def operations(root, work):
    """Returns the operations that `work` performs below a folder."""
    with Disk(root).in_place() as disk:
        work()
    return disk.operations

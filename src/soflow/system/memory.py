"""Out-of-memory errors, on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

from soflow.errors import RunError, first_line

#: Parts of error messages without their own exception class: from torch on CPUs (Linux, Windows)
#: and on Apple's GPUs, and from NVIDIA's libraries.
WORDS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


@contextmanager
def out_of_memory_explained(advice: str) -> Iterator[None]:
    """Raises RunError with this advice if memory runs out."""
    try:
        yield
    except RunError:  # it already has advice
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{out_of_memory(error)}: {advice}") from error


def out_of_memory(error: BaseException) -> str:
    """The message of an out-of-memory error, without advice."""
    return f"out of memory ({first_line(error).rstrip('.')})"

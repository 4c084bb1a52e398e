"""Text for the screen."""

from datetime import timedelta


def printable(text: str) -> str:
    """The text as one line. Line breaks, control characters and invalid Unicode become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def clock(seconds: float) -> str:
    """Formats seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))

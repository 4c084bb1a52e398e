"""Text that is safe to print."""


def printable(text: str) -> str:
    """The text as one line. Line breaks, control characters and invalid Unicode become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )

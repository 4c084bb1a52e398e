"""Text that is safe to print."""


def printable(text: str) -> str:
    """The text in one line: line ends, control characters and broken Unicode become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )

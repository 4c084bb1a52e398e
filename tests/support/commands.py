"""Helpers for tests of the command line."""


def assert_fails(result, status, *words):
    """Checks the exit status, and that stderr is one line with these words and no traceback.

    The summary of the data may precede the line.
    """
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    lines = [line for line in lines if not line.startswith("data: ")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]

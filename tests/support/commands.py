"""What tests of the command line share."""


def assert_fails(result, status, *words):
    """The exit status, one line on stderr with those words in it, no traceback.

    The summary of the data may come before it.
    """
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    lines = [line for line in lines if not line.startswith("data: ")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]

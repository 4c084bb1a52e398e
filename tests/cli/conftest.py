"""What tests of the command line share."""

import shutil

import pytest


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that a test may spoil."""
    return shutil.copytree(tiny_run, tmp_path / "run")

"""Fixtures for tests of the command line."""

import shutil

import pytest


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that a test may modify."""
    return shutil.copytree(tiny_run, tmp_path / "run")

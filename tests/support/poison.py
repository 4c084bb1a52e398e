"""Digits with non-finite values."""

from dataclasses import replace

from soflow.data import sources
from soflow.data.batches import Batches


def replace_digits(monkeypatch, dataset):
    """The source `digits` returns another dataset."""
    registered = getattr(sources.SOURCES, "entries", sources.SOURCES)
    monkeypatch.setitem(registered, "digits", lambda *arguments: dataset)


def poison(monkeypatch, step, rows, value=float("nan"), batch_size=16):
    """Overwrites digits at rows of the batch of a step, counted from 0. Returns their indices."""
    real = sources.digits("train")
    numbers = Batches(real, batch_size, 0).indices(step)[rows]
    pixels = real.rows.clone()
    pixels[numbers] = value
    replace_digits(monkeypatch, replace(real, rows=pixels))
    return numbers

"""Locates non-finite values in a step, by loss term, row of the batch and parameter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from soflow.objectives.base import Term

#: Number of rows or parameters that a message lists.
NAMED = 8


@dataclass(frozen=True, order=True)
class BadRow:
    """A row of the global batch with a non-finite loss or error."""

    row: int
    number: int  # index of the sample in the dataset
    what: str  # such as "loss of the term 'consistency' is nan"
    times: str  # such as "t=0.7, l=0.6, s=0.2"


@dataclass(frozen=True)
class NonFinite:
    """The non-finite values of a step, equal in all processes."""

    step: int
    rows: list[BadRow]
    parameters: list[str]  # with non-finite gradients
    means: list[str]  # non-finite means of the log

    def __str__(self) -> str:
        if self.rows:
            first, several = self.rows[0], len(self.rows) > 1
            rows = enumeration([row.row for row in self.rows])
            numbers = enumeration([row.number for row in self.rows])
            s, at = ("s", "the first at ") if several else ("", "")
            times = f"; {at}{first.times}" if first.times else ""
            return (
                f"the {first.what} at step {self.step}, in row{s} {rows} of the batch "
                f"(sample{s} {numbers} of the dataset{times})"
            )
        what, names = ("gradient", self.parameters) if self.parameters else ("mean", self.means)
        return f"the {what} of {enumeration(names)} is not finite at step {self.step}"


def bad_rows(terms: dict[str, Term], size: int) -> Iterator[tuple[int, str, str]]:
    """The non-finite rows of a microbatch: the row, the value, and its times.

    Each term covers a range of the `size` rows, in order. A term can also cover all rows.
    """
    first = 0
    for name, term in terms.items():
        values = {"loss": term.loss, "squared error": term.squared, "weight": term.weight}
        finite = torch.stack(list(values.values())).isfinite()  # (3, n)
        for i in (~finite.all(0)).nonzero().flatten().tolist():
            what = next(key for key, value in values.items() if not value[i].isfinite())
            times = ", ".join(f"{time}={float(at[i]):.4g}" for time, at in term.times.items())
            value = float(values[what][i])
            yield first + i, f"{what} of the term '{name}' is {value}", times
        first = (first + len(term.loss)) % size


def enumeration(names: Sequence[object]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more

"""What is not finite in a step, named by loss term, row of the batch and parameter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from soflow.objectives.base import Term

#: Rows and parameters that a message names.
NAMED = 8


@dataclass(frozen=True, order=True)
class BadRow:
    """A row of the global batch with a loss or an error that is not finite."""

    row: int
    number: int  # of the sample in the data
    what: str  # such as "consistency loss is nan"
    times: str  # such as "t=0.7, l=0.6, s=0.2"


@dataclass(frozen=True)
class NonFinite:
    """What is not finite in a step; the same in every process."""

    step: int
    rows: list[BadRow]
    parameters: list[str]  # whose gradients are not finite
    means: list[str]  # of the log

    def __str__(self) -> str:
        if self.rows:
            first, several = self.rows[0], len(self.rows) > 1
            rows = enumeration([row.row for row in self.rows])
            numbers = enumeration([row.number for row in self.rows])
            s, at = ("s", "the first at ") if several else ("", "")
            return (
                f"the {first.what} at step {self.step}, in row{s} {rows} of the batch "
                f"(number{s} {numbers} of the data; {at}{first.times})"
            )
        what, names = ("gradient", self.parameters) if self.parameters else ("mean", self.means)
        return f"the {what} of {enumeration(names)} is not finite at step {self.step}"


def bad_rows(terms: dict[str, Term], size: int) -> Iterator[tuple[int, str, str]]:
    """The rows of a microbatch that are not finite: row, what it is, and its times.

    Terms share the `size` rows, one after the other; a term may also concern all of them.
    """
    first = 0
    for name, term in terms.items():
        values = {"loss": term.loss, "squared error": term.squared, "weight": term.weight}
        finite = torch.stack(list(values.values())).isfinite()  # (3, n)
        for i in (~finite.all(0)).nonzero().flatten().tolist():
            what = next(key for key, value in values.items() if not value[i].isfinite())
            times = ", ".join(f"{time}={float(at[i]):.4g}" for time, at in term.times.items())
            value = float(values[what][i])
            yield first + i, f"{name.replace('_', ' ')} {what} is {value}", times
        first = (first + len(term.loss)) % size


def enumeration(names: Sequence[object]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more

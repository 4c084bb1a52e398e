"""Classes by name or number."""

import pytest

from soflow.errors import InputError
from soflow.workflows.labels import labels_in_turn


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0,2", [0, 2]),
        ("cat,Cat, CAR", [2, 1, 3]),  # as it is spelled first, then in any case
        ("tench, Tinca tinca", [0]),
        ("goldfish, Carassius auratus,tench,tinca TINCA, 2,fish", [4, 0, 2, 5]),
    ],
)
def test_classes_are_listed_with_commas(text, numbers):
    names = ("tench, Tinca tinca", "Cat", "cat", "car", "goldfish,Carassius auratus", "fish")
    assert labels_in_turn(text, len(numbers), names).tolist() == numbers
    assert labels_in_turn(text, len(numbers) + 1, names).tolist() == [*numbers, numbers[0]]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("CAT", r"CAT.* Cat \(0\) and cat \(1\)"),
        ("crane", r"crane \(2\) and crane \(3\)"),
        ("²", "².* 0 to 4"),
        ("5", "5.* 0 to 4"),
        ("cat,tench", "'tench'.*Cat, cat, crane, crane, trench; did you mean trench"),
    ],
)
def test_names_of_no_class_or_of_several_are_refused(text, named):
    with pytest.raises(InputError, match=named):
        labels_in_turn(text, 1, ("Cat", "cat", "crane", "crane", "trench"))


def test_a_run_without_classes_takes_no_labels():
    with pytest.raises(InputError, match="without classes"):
        labels_in_turn("0", 1, ())

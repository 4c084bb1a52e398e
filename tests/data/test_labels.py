"""Labels in all forms in which people store them."""

import numpy as np
import pytest

from soflow.data.labels import choose_labels, classes_of, without_gaps
from soflow.errors import InputError


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([0, 2, 1], [0, 2, 1], ()),
        ([0.0, 2.0, float("nan")], [0, 2, -1], ()),
        ([True, False], [1, 0], ()),
        (list(np.array([1, 0], np.uint8)), [1, 0], ()),
        (["0", "1", ""], [0, 1, -1], ()),
        ([0, -1, None], [0, -1, -1], ()),
        (["dog", "cat", None, b"dog"], [1, 0, -1, 1], ("cat", "dog")),
        (list(np.eye(3)[[2, 0]]), [2, 0], ()),
        ([[0, 1], [1, 0]], [1, 0], ()),
        (list(np.array([[3], [1]])), [3, 1], ()),
    ],
)
def test_stored_values_become_classes(values, labels, names):
    found = classes_of(values, (), "x")
    assert (found.labels, found.names) == (labels, names)


@pytest.mark.parametrize(
    "values",
    [[0.5, 1.0], [0, -2], [0, 10**6], [-1, -1], [None, ""], [0, "cat"], [[0, 2], [1, 0]], [{}, {}]],
)
def test_other_values_are_not_classes_for_a_known_reason(values):
    found = classes_of(values, (), "the column x")
    assert found.labels is None
    assert "the column x" in found.reason


def test_known_names_number_the_classes():
    assert classes_of(["b"], ("a", "b"), "x").labels == [1]
    assert classes_of(["3", "7"], ("3", "7"), "x").labels == [0, 1]
    assert "'c'" in classes_of(["c"], ("a", "b"), "x").reason
    assert classes_of([1], ("a", "b"), "x").labels == [1]


def test_classes_without_samples_count_only_if_stated():
    def of(values, used, stated=-1):
        found = without_gaps(classes_of(values, (), "x"), used, stated, "x")
        return found.labels, found.names or found.reason

    wine = [1, 3, 2, 1, -1]
    assert of(wine, wine) == ([0, 2, 1, 0, -1], ("1", "2", "3"))
    assert of([3, 3], wine) == ([2, 2], ("1", "2", "3"))  # a split without some classes
    assert of(wine, wine, stated=3) == of(wine, wine)  # as stored in a run
    assert of(wine, wine, stated=4) == (wine, "")
    assert of([1, 0], [0, 1]) == ([1, 0], "")
    assert of([4], wine)[0] is None
    labels, reason = of([1, -1], [1, -1])  # a convention of classifiers
    assert labels is None
    assert "0 and 1" in reason


def test_the_class_column_is_found_by_name_or_by_repeated_text():
    texts, captions = ["a", "b"] * 3, [f"caption {i}" for i in range(6)]
    assert choose_labels({"caption": captions, "Label": [0] * 6, "kind": texts}, "x") == "Label"
    assert choose_labels({"caption": captions, "kind": texts}, "x") == "kind"
    assert choose_labels({"caption": captions, "price": [1, 1, 2, 2, 3, 3]}, "x") is None
    with pytest.raises(InputError, match=r"kind and sort.*data\.label_column=kind"):
        choose_labels({"kind": texts, "sort": texts}, "x")

"""Classes by name or number."""

import numpy as np
import pytest
import torch

import soflow
from soflow.errors import InputError
from soflow.workflows.labels import labels_in_turn


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0,2", [0, 2]),
        ("cat,Cat, CAR", [2, 1, 3]),  # exact spelling first, then ignoring case
        ("tench, Tinca tinca", [0]),
        ("goldfish, Carassius auratus,tench,tinca TINCA, 2,fish", [4, 0, 2, 5]),
    ],
)
def test_classes_are_separated_by_commas(text, numbers):
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
def test_unknown_and_ambiguous_names_are_rejected(text, named):
    with pytest.raises(InputError, match=named):
        labels_in_turn(text, 1, ("Cat", "cat", "crane", "crane", "trench"))


def test_a_run_without_classes_takes_no_labels():
    with pytest.raises(InputError, match="without classes"):
        labels_in_turn("0", 1, ())


# Lists in Python

NULL = len(("cat", "dog", "red, blue"))


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        (["dog", "cat"], [1, 0]),
        (("DOG", 0), [1, 0]),
        (["red, blue"], [2]),
        ([2, "1"], [2, 1]),
        (np.array([1, 0]), [1, 0]),
        (np.array(["dog", "cat"]), [1, 0]),
        (torch.tensor([2], dtype=torch.uint8), [2]),
        ([np.int64(1)], [1]),
        (range(2), [0, 1]),
        (1, [1]),
        ([None, 0, -1], [NULL, 0, NULL]),
    ],
)
def test_classes_are_listed_by_name_or_number(given, numbers):
    names = ("cat", "dog", "red, blue")
    expected = [numbers[i % len(numbers)] for i in range(5)]
    assert labels_in_turn(given, 5, names).tolist() == expected


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["fox"], "fox"),
        ([3], "0 to 2"),
        ([-2], "-2"),
        ([0.5], "0.5"),
        ([], "empty"),
        (["cat,dog"], "cat,dog"),
        ({"cat": 1}, "cat"),
    ],
)
def test_values_that_are_not_classes_are_named(given, named):
    with pytest.raises(InputError, match=named):
        labels_in_turn(given, 5, ("cat", "dog", "red, blue"))


def test_a_request_accepts_lists(tiny_run):
    run = soflow.load(tiny_run, device="cpu")
    request = soflow.SampleRequest.of(run, 4, labels=[3, "4", None])
    assert request.labels.tolist() == [3, 4, 10, 3]
    assert request.labels_from == "given"
    direct = soflow.SampleRequest(4, [3, 4, 10, 3], "renoise", 1)
    torch.testing.assert_close(soflow.sample(run, direct), soflow.sample(run, request))
    with pytest.raises(InputError, match=r"guidance has shape \[4\]"):
        soflow.SampleRequest(4, None, "renoise", 1, guidance=torch.ones(4))

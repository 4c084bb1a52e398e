"""The usual names of training, test and validation splits."""

import re
from collections.abc import Sequence

from soflow.errors import InputError

#: Usual names of splits, in lower case and without separators, with their standard names.
USUAL = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
    **dict.fromkeys(
        ("validation", "valid", "val", "validate", "dev", "development", "eval", "evaluation"),
        "validation",
    ),
}
#: Words that may accompany the name of a split, as in train_images or test-set.
FILLERS = ("images", "image", "imgs", "img", "set", "data", "split", "samples", "arr")
#: The held-out splits, in order of preference.
HELD_OUT = ("test", "validation")


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without digits and the words in FILLERS."""
    return [word for word in re.split(r"[\W\d_]+", name.casefold()) if word not in ("", *FILLERS)]


def split_of(name: str) -> str | None:
    """The standard name of a split (train, test or validation); None if `name` is not a split."""
    return USUAL.get("".join(words_of(name)))


def splits_among(names: Sequence[str]) -> dict[str, str]:
    """The folder names that are splits, such as train and val, or pets_train and pets_test."""
    found = {name: split for name in names if (split := split_of(name))}
    if found:
        return found
    alike: dict[str, dict[str, str]] = {}
    for name in names:
        words = words_of(name)
        for place in (0, -1):
            if len(words) > 1 and words[place] in USUAL:
                rest = words[1:] if place == 0 else words[:-1]
                alike.setdefault(" ".join(rest), {})[name] = USUAL[words[place]]
    groups = [group for group in alike.values() if {"train"} < set(group.values())]
    return groups[0] if len(groups) == 1 else {}


def named_split(asked: str, splits: Sequence[str], where: str) -> str:
    """The split in `splits` that `asked` refers to, by its own or any usual name.

    Raises:
        InputError: If no split matches.
    """
    if asked in splits:
        return asked
    meant = split_of(asked)
    same = [one for one in splits if meant is not None and split_of(one) == meant]
    if len(same) != 1:
        known = " or ".join(splits)
        raise InputError(f"{where} has no split '{asked}': choose {known}")
    return same[0]

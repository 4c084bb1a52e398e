"""Rules for resuming a run: which settings and data must stay the same, and which may change."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from soflow.config import Config
from soflow.config.own import OWN
from soflow.config.reading import BEFORE, fields, lookup
from soflow.data.dataset import DataRecord
from soflow.errors import InputError, shortened
from soflow.run.folder import RunFolder

#: Keys that may differ without being set explicitly. They change the weights at most through
#: rounding, dropout masks and the handling of non-finite updates. `require_same_data` checks data.
FREE_KEYS = (
    "description", "data.max_unreadable", "data.path", "checkpoint.", "compile", "evaluate.",
    "parallel", "train.accumulate", "train.checkpoint_activations", "train.log_every",
    "train.max_skipped", "train.on_nonfinite", "train.sample_every", "train.trackers",
)  # fmt: skip
#: Keys that may change if they are set explicitly. Weights, EMA weights and the state of the
#: optimizer stay valid.
CHANGEABLE_KEYS = (
    "data.balance", "data.flip", "ema.", "optimizer.betas", "optimizer.clip", "optimizer.lr",
    "optimizer.lr_end", "optimizer.lr_schedule", "optimizer.warmup", "optimizer.weight_decay",
    "precision", "train.batch_size", "train.steps",
)  # fmt: skip
#: Keys with the class of a part that is passed from Python.
CLASS_KEYS = ("network.kind", "objective.kind")


#: A missing value in messages.
UNSET = "(unset)"


class Difference(NamedTuple):
    """A setting that differs from the setting of the run."""

    key: str
    old: Any
    new: Any


def differences(started: Config, asked: Config) -> Iterator[Difference]:
    """The settings that differ, except those in FREE_KEYS."""
    own = fields(names={"network": OWN, "objective": OWN})
    for key in dict.fromkeys(key for key, _ in chain(fields(), own)):
        old, new = lookup(started, key), lookup(asked, key)
        imported = old == "auto"  # an imported run has not chosen a value yet
        same = old == new or (key in CLASS_KEYS and same_class(old, new))
        if not same and not imported and not key.startswith(FREE_KEYS):
            yield Difference(key, old, new)


def same_class(old: str | None, new: str | None) -> bool:
    """Whether two class names are equal, if one is of a script, whose module is `__main__`."""
    if old is None or new is None:  # one of the parts is not passed from Python
        return False
    (module, _, name), (other, _, name_now) = (x.rpartition(".") for x in (old, new))
    return name == name_now and "__main__" in (module, other)


def require_same_settings(started: Config, asked: Config, folder: RunFolder) -> None:
    """Raises InputError for the first setting that differs from the run."""
    for difference in differences(started, asked):
        raise other_settings(difference, folder)


def changed_settings(
    started: Config, asked: Config, given: Sequence[str], folder: RunFolder
) -> list[Difference]:
    """The settings to change. All of them are among the keys `given`.

    Raises:
        InputError: For the first setting that differs and cannot be changed, or was not set.
    """
    found = list(differences(started, asked))
    for difference in found:
        key, old, new = difference
        if not key.startswith(CHANGEABLE_KEYS):
            raise other_settings(difference, folder)
        if not is_given(key, given):
            raise InputError(
                f"{folder.path} has {key}={plain(old)}, not {plain(new)}: to keep the setting, "
                f"resume with soflow train {folder.path}; to change it, set {key}={plain(new)}; "
                "for a new run, choose another folder"
            )
    return found


def other_settings(difference: Difference, folder: RunFolder) -> InputError:
    key, old, new = narrowed(difference)
    return InputError(
        f"{folder.path} was started with {key}={plain(old)}, not {plain(new)}: resume it with the "
        "same settings, or start a new run in another folder"
    )


def narrowed(difference: Difference) -> Difference:
    """The first difference inside two mappings, such as the fields of a custom objective."""
    key, old, new = difference
    if not isinstance(old, dict) or not isinstance(new, dict):
        return difference
    pairs = ((name, old.get(name, UNSET), new.get(name, UNSET)) for name in {**old, **new})
    name, before, now = next(pair for pair in pairs if pair[1] != pair[2])
    return narrowed(Difference(f"{key}.{name}", before, now))


def plain(value: Any) -> Any:
    """A setting in the form used on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return list(value) if isinstance(value, tuple) else value


def is_given(key: str, given: Sequence[str]) -> bool:
    """Whether a key, or a section that contains it, is among the given keys."""
    return any(key == one or key.startswith(f"{one}.") for one in given)


def keep_older(asked: Config, started: Config | None, given: Sequence[str] = ()) -> Config:
    """The configuration with old defaults for keys that did not exist when the run started.

    Keys that are set explicitly do not change.
    """
    for key, before in BEFORE.items():
        section, name = key.split(".")
        if started is not None and lookup(started, key) == before and not is_given(key, given):
            update = getattr(asked, section).model_copy(update={name: before})
            asked = asked.model_copy(update={section: update})
    return asked


def require_same_data(started: DataRecord, now: DataRecord, folder: RunFolder) -> None:
    """Raises InputError if the data has changed, because its order or the latents would differ."""
    for key in ("count", "class_names", "encoder", "fingerprint"):
        old, new = (shortened(str(getattr(record, key)), 200) for record in (started, now))
        if getattr(started, key) != getattr(now, key):
            change = f"{key.replace('_', ' ')} {old}, now {new}"
            raise InputError(
                f"{folder.path} was started with other data ({change}): restore the data, or start "
                f"a new run with --out and init_from={folder.path}"
            )

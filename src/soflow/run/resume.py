"""What must be the same when a run is resumed: its settings and its data."""

from soflow.config import Config
from soflow.config.reading import fields, lookup
from soflow.data.dataset import DataRecord
from soflow.errors import InputError, shortened
from soflow.run.folder import RunFolder

#: Keys that may change: they affect rounding at most, and the masks of dropout.
FREE_KEYS = (
    "description", "data.path", "checkpoint.", "compile", "evaluate.", "parallel",
    "train.accumulate", "train.checkpoint_activations", "train.log_every", "train.max_skipped",
    "train.on_nonfinite", "train.sample_every", "train.trackers",
)  # fmt: skip


def require_same_settings(begun: Config, asked: Config, folder: RunFolder) -> None:
    """Raises InputError naming the first setting that differs from those the run was begun with."""
    for key in dict.fromkeys(key for key, _ in fields()):
        old, new = lookup(begun, key), lookup(asked, key)
        imported = old == "auto"  # a run that was imported has chosen nothing yet
        if old != new and not imported and not key.startswith(FREE_KEYS):
            raise InputError(
                f"{folder.path} was begun with {key}={old}, not {new}: resume it with the same "
                "settings, or begin a new run in another folder with --out"
            )


def require_same_data(begun: DataRecord, now: DataRecord, folder: RunFolder) -> None:
    """Raises InputError if the data changed: their order and what latents mean would, too."""
    for key in ("count", "class_names", "encoder", "fingerprint"):
        old, new = (shortened(str(getattr(record, key)), 200) for record in (begun, now))
        if getattr(begun, key) != getattr(now, key):
            change = f"{key.replace('_', ' ')} {old}, now {new}"
            raise InputError(
                f"{folder.path} was begun on other data ({change}): restore the data, or begin a "
                f"new run with --out and init_from={folder.path}"
            )

"""Runs to interrupt and to damage, and checks that two runs are equal."""

import fcntl
import json
import os
from pathlib import Path

from safetensors.torch import load_file

from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder

#: Uses everything with state or randomness: dropout, augmentation, microbatches, warm-up, the
#: schedule of r, and float64 EMA weights every second step.
UNET = [
    "data.num_classes=0", "data.augment=0.5",
    "network.name=unet", "network.model_channels=16", "network.blocks=1",
    "network.channel_mult=[1]", "network.attention=[]", "network.dropout=0.3",
    "noising.name=linear",
    "optimizer.name=radam", "optimizer.lr=1e-3", "optimizer.clip=1", "optimizer.warmup=5",
    "ema.decay=0.9", "ema.every=2", "ema.float64=true",
]  # fmt: skip
DIT = [
    "network.width=32", "network.depth=1", "network.heads=2", "network.patch=4",
    "optimizer.warmup=5", "data.flip=true",
]  # fmt: skip
MLP = ["network.width=16", "network.depth=1", "optimizer.warmup=5"]
SHORT = [
    "train.steps=8", "train.batch_size=16", "train.accumulate=2", "train.log_every=2",
    "train.sample_every=4",
    "checkpoint.every=3", "checkpoint.keep_every=6", "checkpoint.keep_last=1",
]  # fmt: skip
OBJECTIVES = ("soflow", "flow_matching", "mean_flow", "shortcut", "consistency")


def unguided(name):
    """The UNet has no labels to guide by, and consistency training has no guidance."""
    return [] if name == "consistency" else ["objective.guidance.scale=1"]


#: Name -> (recipe, settings).
WHOLE = {
    **{
        f"unet {name}": ("digits", [f"objective.name={name}", *unguided(name), *UNET, *SHORT])
        for name in OBJECTIVES
    },
    **{f"dit {name}": ("digits", [f"objective.name={name}", *DIT, *SHORT]) for name in OBJECTIVES},
    "moons": ("moons", [*MLP, *SHORT]),
    "moons, evaluated": (
        "moons",
        [*MLP, *SHORT, "evaluate.every=3", "evaluate.num_while_training=20"],
    ),
}
CLOCK = {"seconds", "steps_per_second", "samples_per_second"}


def without_clock(folder):
    """Returns the lines of metrics.jsonl without measured times."""
    return [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in folder.read_metrics()
    ]


def assert_same_tensors(one, two):
    """Checks that weights, EMA weights and optimizer of two checkpoints are bitwise equal."""
    for name in ("model.safetensors", "ema.safetensors"):
        tensors = [load_file(checkpoint.path / name) for checkpoint in (one, two)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(tensors[0][key].equal(tensors[1][key]) for key in tensors[0]), (one, name)
    states = [checkpoint.optimizer_state() for checkpoint in (one, two)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, moments in states[0]["state"].items():
        for key, value in moments.items():
            assert value.equal(states[1]["state"][index][key]), (one, index, key)


def assert_same_run(one, two, last_only=False, config=True):
    """Checks that checkpoints, log and samples of two runs are equal, except for measured times."""
    one, two = RunFolder(Path(one)), RunFolder(Path(two))
    kept = [checkpoints(run.checkpoints)[-1 if last_only else 0 :] for run in (one, two)]
    assert [c.step for c in kept[0]] == [c.step for c in kept[1]]
    for a, b in zip(*kept, strict=True):
        assert a.problem() is None
        assert b.problem() is None
        assert_same_tensors(a, b)
        states = [c.train_state() for c in (a, b)]
        for state in states:
            state.seconds = 0.0
            state.means.pop("seconds", None)
        assert states[0] == states[1]
    lines = [without_clock(run) for run in (one, two)]
    assert lines[0] == lines[1]
    assert len({line["step"] for line in lines[0]}) == len(lines[0]) > 0
    pictures = [
        {file.name: file.read_bytes() for file in run.samples.iterdir()} for run in (one, two)
    ]
    assert pictures[0] == pictures[1]
    assert not config or one.config.read_bytes() == two.config.read_bytes()
    for run in (one, two):
        assert all(path.name.startswith("step-") for path in run.checkpoints.iterdir())


def add_figures(**figures):
    """Adds counts of a long test to the JSON file in SOFLOW_FIGURES, if it is set."""
    if file := os.environ.get("SOFLOW_FIGURES"):
        with open(file, "a+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            found = json.loads(stream.read() or "{}")
            stream.truncate(0)
            stream.write(json.dumps({**found, **figures}, indent=1, sort_keys=True) + "\n")

"""Runs to be stopped and damaged, and what it means that nothing was lost."""

import fcntl
import json
import os
import signal
from pathlib import Path

from safetensors.torch import load_file

from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.training.display import SilentDisplay

#: A run of a second with everything that has state or chance, for every objective: dropout, augmentation, batches in parts,
#: warm-up, the schedule of r, averages in float64 every second step.
UNET = [
    *[
        "data.num_classes=0",
        "data.augment=0.5",
        "network.name=unet",
        "network.model_channels=16",
        "network.blocks=1",
    ],
    *[
        "network.channel_mult=[1]",
        "network.attention=[]",
        "network.dropout=0.3",
        "noising.name=linear",
    ],
    *["optimizer.name=radam", "optimizer.lr=1e-3", "optimizer.clip=1", "optimizer.warmup=5"],
    *["ema.decay=0.9", "ema.every=2", "ema.float64=true"],
]
DIT = [
    "network.width=32",
    "network.depth=1",
    "network.heads=2",
    "network.patch=4",
    "optimizer.warmup=5",
    "data.flip=true",
]
MLP = ["network.width=16", "network.depth=1", "optimizer.warmup=5"]
SHORT = ["train.steps=8", "train.batch_size=16", "train.accumulate=2", "train.log_every=2", "train.sample_every=4",
         "checkpoint.every=3", "checkpoint.keep_every=6", "checkpoint.keep_last=1"]  # fmt: skip
OBJECTIVES = ("soflow", "flow_matching", "mean_flow", "shortcut", "consistency")


def unguided(name):
    """The UNet takes no labels to guide by, and consistency training knows no guidance."""
    return [] if name == "consistency" else ["objective.guidance.scale=1"]


#: Name -> recipe and settings.
WHOLE = {
    **{
        f"unet {name}": ("digits", [f"objective.name={name}", *unguided(name), *UNET, *SHORT])
        for name in OBJECTIVES
    },
    **{f"dit {name}": ("digits", [f"objective.name={name}", *DIT, *SHORT]) for name in OBJECTIVES},
    "moons": ("moons", [*MLP, *SHORT]),
    "moons, measured on the way": (
        "moons",
        [*MLP, *SHORT, "evaluate.every=3", "evaluate.num_while_training=20"],
    ),
}


class StopAt(SilentDisplay):
    """Sends this process a signal once a number of steps is done, as Ctrl-C would."""

    def __init__(self, at, signum=signal.SIGINT):
        self.at, self.signum = at, signum

    def step(self, done, loss, samples_per_second):
        if done == self.at:
            os.kill(os.getpid(), self.signum)


CLOCK = {"seconds", "steps_per_second", "samples_per_second"}


def assert_same_run(one, two, last_only=False, config=True):
    """All that two runs left is the same, bit for bit, but for the clock: checkpoints (or the last), log, samples."""
    one, two = RunFolder(Path(one)), RunFolder(Path(two))
    kept = [checkpoints(run.checkpoints)[-1 if last_only else 0 :] for run in (one, two)]
    assert [c.step for c in kept[0]] == [c.step for c in kept[1]]
    for a, b in zip(*kept, strict=True):
        assert a.problem() is None
        assert b.problem() is None
        for name in ("model.safetensors", "ema.safetensors"):
            tensors = [load_file(c.path / name) for c in (a, b)]
            assert tensors[0].keys() == tensors[1].keys()
            assert all(tensors[0][key].equal(tensors[1][key]) for key in tensors[0]), (a, name)
        states = [c.optimizer_state() for c in (a, b)]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        assert states[0]["state"].keys() == states[1]["state"].keys()
        for index, values in states[0]["state"].items():
            assert all(
                value.equal(states[1]["state"][index][key]) for key, value in values.items()
            ), (a, index)
        states = [c.train_state() for c in (a, b)]
        for state in states:
            state.seconds = 0.0
            state.sums.pop("seconds", None)
        assert states[0] == states[1]
    lines = [
        [{k: v for k, v in line.items() if k not in CLOCK} for line in run.read_metrics()]
        for run in (one, two)
    ]
    assert lines[0] == lines[1]
    assert len({line["step"] for line in lines[0]}) == len(lines[0]) > 0
    pictures = [
        {file.name: file.read_bytes() for file in run.samples.iterdir()} for run in (one, two)
    ]
    assert pictures[0] == pictures[1]
    assert not config or one.config.read_bytes() == two.config.read_bytes()
    assert [
        p.name
        for run in (one, two)
        for p in run.checkpoints.iterdir()
        if not p.name.startswith("step-")
    ] == []


def add_figures(**figures):
    """Adds what a long test counted to the JSON file that the variable SOFLOW_FIGURES names, if it does."""
    if file := os.environ.get("SOFLOW_FIGURES"):
        with open(file, "a+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            found = json.loads(stream.read() or "{}")
            stream.truncate(0)
            stream.write(json.dumps({**found, **figures}, indent=1, sort_keys=True) + "\n")

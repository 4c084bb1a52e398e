"""Kills training repeatedly with SIGKILL, and compares the result with an uninterrupted run.

    PYTHONPATH=tests python -m support.kills [KILLS [SEED [RUN ...]]]

RUN is a name in support/whole_runs.py. The default is all of them in turn. A run is started, killed
at a moment that the seed chooses, and started again until it finishes. Then all its files are
compared with an uninterrupted run, and the next run starts.

There are three kinds of moments: the n-th call of a Python function; the middle of the n-th disk
operation, with half of the bytes written; and a number of milliseconds. Some processes are stopped
by SIGTERM instead, so that the next process resumes in the middle of the work after a step.

This process only forks. Children inherit the imported modules.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import soflow
from soflow.run import checkpoint_manager
from soflow.system.progress import silent
from soflow.training.signals import Stopped
from support.faults import KILL, Disk, operations
from support.whole_runs import WHOLE, assert_same_run

KINDS = ("call", "disk", "clock", "term")
LIVES = 5  # the largest number of interrupted processes per run


def in_child(work):
    """Runs `work` in a forked child. Returns the process ID."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        os._exit(0)
    return child


def ended(child, after=None):
    """Waits for the child and returns its exit status. Kills it `after` that many seconds."""
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(name, out):
    recipe, settings = WHOLE[name]
    soflow.train(recipe, out, settings, progress=silent)


def calls(work, until=None, signum=signal.SIGKILL):
    """Counts calls of Python functions during `work`. Sends a signal at one of them."""
    number = 0

    def count(frame, event, argument):
        nonlocal number
        if event == "call":
            number += 1
            if number == until:
                os.kill(os.getpid(), signum)

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


def measure(name, out, file):
    """Trains to the end. Counts calls, disk operations and seconds of the uninterrupted run."""
    start = time.monotonic()
    train(name, out)
    seconds = time.monotonic() - start
    done = operations(out.parent, lambda: train(name, out.parent / "again"))
    counted = calls(lambda: train(name, out.parent / "and again"))
    assert_same_run(out, out.parent / "again")
    file.write_text(
        json.dumps({"call": counted, "term": counted, "disk": len(done), "clock": seconds})
    )


def live(name, out, kind, moment, saving):
    """Runs one process until a chosen moment or its end. `saving` exists during a checkpoint."""
    real = checkpoint_manager.save_checkpoint

    def noting(*arguments):
        saving.touch()
        real(*arguments)
        saving.unlink()

    checkpoint_manager.save_checkpoint = noting
    if kind == "call":
        calls(lambda: train(name, out), until=moment)
    elif kind == "term":
        try:
            calls(lambda: train(name, out), until=moment, signum=signal.SIGTERM)
        except Stopped:
            os._exit(143)
    elif kind == "disk":
        with Disk(out, moment, KILL).in_place():
            train(name, out)
    else:
        train(name, out)


def main(kills=50, seed=0, *names):
    """Kills `kills` processes and returns counts. Raises AssertionError if a run differs."""
    torch.set_num_threads(1)  # threads do not survive a fork
    chance = random.Random(seed)
    names, folder = names or tuple(WHOLE), Path(tempfile.mkdtemp())
    counts = Counter()
    for number in range(10**6):
        name = names[number % len(names)]
        place = folder / f"{number} {name}"
        place.mkdir(parents=True)
        whole, out, saving = place / "whole", place / "killed", place / "saving"
        assert ended(in_child(lambda: measure(name, whole, place / "lives"))) == 0  # noqa: B023
        lives = json.loads((place / "lives").read_text())
        for life in range(10**6):
            kind = chance.choice(KINDS) if counts["kills"] < kills and life < LIVES else None
            moment = chance.uniform(0, 0.8) * lives[kind] if kind else 0
            saving.unlink(missing_ok=True)
            child = in_child(lambda: live(name, out, kind, int(moment), saving))  # noqa: B023
            status = ended(child, after=moment if kind == "clock" else None)
            # -15: SIGTERM before there was a checkpoint to write
            assert status in (0, -9, 143, -15), f"{out} ended with {status}"
            counts["stops by SIGTERM"] += status in (143, -15)
            if status == -9:
                counts["kills"] += 1
                counts[f"by {kind}"] += 1
                counts["while a checkpoint was written"] += saving.exists()
                print(
                    f"kill {counts['kills']} of {kills}: {name}, by {kind} {moment:.4g}",
                    file=sys.stderr,
                    flush=True,
                )
            if status == 0:
                break
        assert ended(in_child(lambda: assert_same_run(whole, out))) == 0, (  # noqa: B023
            f"{out} is not what it would have been"
        )
        counts["runs that ended as they would have"] += 1
        if counts["kills"] >= kills:
            return dict(counts)
    raise AssertionError


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(*map(int, given[:2]), *given[2:]), indent=1))

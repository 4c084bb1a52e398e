"""Several processes train like one, write the same files, and end together.

Tests launch them as users do. A launch takes seconds, so each test checks as much as it can.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import soflow
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.run.lock import only_trainer_of
from soflow.training import trainer
from support.settings import TINY_DIT
from support.whole_runs import assert_same_run

SHORT = ["train.steps=8", "train.batch_size=16", "train.log_every=2", "checkpoint.every=4"]
#: Two blocks, gradient clipping, and non-default values for every part of a checkpoint.
DIT = [
    *TINY_DIT,
    *SHORT,
    "network.depth=2",
    "optimizer.clip=0.1",
    "optimizer.lr=1e-3",
    "ema.decay=0.9",
    "ema.float64=true",
]
IN_CONTEXT = ["network.name=in_context_dit", "network.class_tokens=3"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
ACCELERATE = [
    *[
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ],
    *["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
]
ALONE = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def launch(launcher, *command, out=None):
    """Runs `launcher` on `command` and `--out out` to its end."""
    where = ["--out", str(out)] if out else []
    return subprocess.run(
        [*launcher, *command, *where],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env=ALONE,
    )


def program(folder, before):
    """A script that runs the command line after some lines of its own."""
    file = folder / "program.py"
    file.write_text(f"{before}\nfrom soflow.__main__ import main\nmain()\n")
    return str(file)


def last(out):
    return checkpoints(RunFolder(out).checkpoints)[-1]


def tensors(checkpoint):
    """Returns all tensors of a checkpoint by name."""
    kept = {
        f"{which} {name}": value
        for which in ("raw", "ema")
        for name, value in checkpoint.weights(which).items()
    }
    optimizer = checkpoint.optimizer_state()["state"]
    return kept | {
        f"moment {i} {name}": value
        for i, values in optimizer.items()
        for name, value in values.items()
    }


def assert_same_bits(one, two):
    one, two = tensors(one), tensors(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype, name
        assert torch.equal(value, two[name]), name


def assert_same_training(one, two, atol=1e-6):
    """Logs and last checkpoints are equal up to rounding: sums of gradients have another order."""
    lines = [RunFolder(out).read_metrics() for out in (one, two)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] != []
    clock = {"seconds", "steps_per_second", "samples_per_second"}
    for a, b in zip(*lines, strict=True):
        assert {key: a[key] for key in a.keys() - clock} == pytest.approx(
            {key: b[key] for key in b.keys() - clock}, rel=1e-5
        )
    kept = [tensors(last(out)) for out in (one, two)]
    assert kept[0].keys() == kept[1].keys()
    for name, value in kept[0].items():
        torch.testing.assert_close(value, kept[1][name], rtol=1e-4, atol=atol)


def back_to_step_4(out, copy):
    """A copy of a run in the state after step 4 was saved."""
    shutil.copytree(out, copy)
    assert last(copy).step == 8
    shutil.rmtree(last(copy).path)
    assert last(copy).step == 4
    return copy


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of a single process, with two microbatches."""
    out = tmp_path_factory.mktemp("runs") / "one"
    soflow.train("digits", out, [*DIT, "train.accumulate=2"])
    return out


@pytest.mark.processes
@pytest.mark.parametrize("checkpointed", ["", "train.checkpoint_activations=true"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_like_one_and_one_process_resumes_their_run(
    parallel, checkpointed, one, tmp_path, monkeypatch
):
    settings, two = [*DIT, "train.accumulate=2"], tmp_path / "two"
    other = [f"parallel={parallel}", *([checkpointed] if checkpointed else [])]
    process = launch(TORCHRUN, "-m", "soflow", "train", "digits", *settings, *other, out=two)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("step 8 of 8") == 1  # only rank 0 logs
    assert_same_training(one, two)
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    model = soflow.load(two, device="cpu").model
    assert (
        soflow.one_step(model, torch.randn(3, *model.shape), labels=torch.arange(3))
        .isfinite()
        .all()
    )

    started = back_to_step_4(two, tmp_path / "started")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "run", trainer.Trainer.save)  # prints its settings
        again = Path(shutil.copytree(started, tmp_path / "again"))
        soflow.train("digits", again, settings)
    assert_same_bits(last(started), last(again))
    soflow.train("digits", started, settings)
    assert_same_training(one, started)


@pytest.mark.processes
@pytest.mark.parametrize(
    "other",
    [
        ["optimizer.name=SGD", "optimizer.options.momentum=0.9", "parallel=fsdp"],
        ["optimizer.name=NAdam", "parallel=fsdp"],
        [*IN_CONTEXT, "parallel=ddp"],
        [*IN_CONTEXT, "parallel=fsdp"],
        pytest.param(
            ["optimizer.name=muon", "parallel=ddp"],
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has it"),
        ),
    ],
)
def test_other_optimizers_and_networks_train_in_two_processes_like_in_one(other, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = [*DIT, "train.accumulate=2", *other]
    soflow.train("digits", one, [*settings, "parallel=ddp"])
    process = launch(TORCHRUN, "-m", "soflow", "train", "digits", *settings, out=two)
    assert process.returncode == 0, process.stderr
    # Muon computes updates in bfloat16, which amplifies rounding.
    assert_same_training(one, two, atol=1e-5 if "optimizer.name=muon" in other else 1e-6)


@pytest.mark.slow
def test_two_sharded_processes_resume_a_run_of_one(one, tmp_path):
    started = back_to_step_4(one, tmp_path / "started")
    save_first = (
        "from soflow.training.trainer import Trainer\n"
        "run = Trainer.run\n"
        "Trainer.run = lambda self: (self.save(), run(self))\n"
    )
    settings = [*DIT, "train.accumulate=2", "parallel=fsdp"]
    process = launch(
        TORCHRUN, program(tmp_path, save_first), "train", "digits", *settings, out=started
    )
    assert process.returncode == 0, process.stderr
    assert f"resuming from {started}" in process.stderr
    at_4, at_8 = checkpoints(RunFolder(started).checkpoints)
    assert_same_bits(checkpoints(RunFolder(one).checkpoints)[0], at_4)
    assert (at_4.step, at_8.step) == (4, 8)
    assert_same_training(one, started)


#: Trains many runs per launch to save time. Rank 1 must not write files.
MANY = """
import os, sys
from accelerate import Accelerator
import soflow

out, names, settings = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
Accelerator.end_training = lambda self: None

def watch(event, arguments):
    writes = event == "open" and (set(arguments[1] or "r") & set("wax+"))
    changes = writes or event.startswith(("os.", "shutil."))
    if changes and any(str(a).startswith(out) for a in arguments):
        if event not in ("os.listdir", "os.scandir"):
            raise AssertionError(f"the second process: {event} {arguments}")

if os.environ["RANK"] == "1":
    sys.addaudithook(watch)
for parallel in ("ddp", "fsdp"):
    for name in names:
        more = [f"objective.name={name}", f"parallel={parallel}"]
        soflow.train("digits", f"{out}/{parallel} {name}", [*settings, *more])
"""


@pytest.mark.slow
def test_every_objective_trains_equally_when_sharded_and_only_rank_0_writes(tmp_path):
    file = tmp_path / "many.py"
    file.write_text(MANY)
    settings = [*DIT, "optimizer.lr=1e-2"]
    names = "soflow,jump_flow,mean_flow,imf,alpha_flow,shortcut,consistency,flow_matching"
    process = launch(TORCHRUN, str(file), str(tmp_path / "two"), names, *settings)
    assert process.returncode == 0, process.stderr
    for name in names.split(","):
        soflow.train("digits", tmp_path / name, [*settings, f"objective.name={name}"])
        for parallel in ("ddp", "fsdp"):
            assert_same_training(tmp_path / name, tmp_path / "two" / f"{parallel} {name}")


@pytest.mark.slow
def test_accelerate_launch_equals_torchrun(one, tmp_path):
    settings = [*DIT, "train.accumulate=2"]
    process = launch(ACCELERATE, "-m", "soflow", "train", "digits", *settings, out=tmp_path / "two")
    assert process.returncode == 0, process.stderr
    assert_same_training(one, tmp_path / "two")


@pytest.mark.slow
def test_two_machines_train_like_one(one, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
    ]
    address = ["--master-addr", "127.0.0.1", "--master-port", port]
    command = [
        "-m",
        "soflow",
        "train",
        "digits",
        *DIT,
        "train.accumulate=2",
        "parallel=fsdp",
        "--out",
        str(tmp_path / "two"),
    ]
    machines = [
        subprocess.Popen(
            [*torchrun, *address, "--node-rank", str(rank), *command],
            stderr=subprocess.PIPE,
            text=True,
            env=ALONE,
        )
        for rank in range(2)
    ]
    for machine in machines:
        _, error = machine.communicate(timeout=150)
        assert machine.returncode == 0, error
    assert_same_training(one, tmp_path / "two")


#: Reports the dtypes of weights and outputs.
NOTING = """
import atexit, sys
from soflow.networks.dit import Attention
forward, seen = Attention.forward, set()

def noting(self, x, rotation):
    out = forward(self, x, rotation)
    seen.add((self.qkv.weight.dtype, out.dtype))
    return out

Attention.forward = noting
atexit.register(lambda: sys.stderr.write(f"precisions {sorted(seen, key=str)}\\n"))
"""


@pytest.mark.slow
def test_sharded_networks_use_bfloat16_except_for_the_consistency_pair(
    tmp_path,
):
    settings = [*DIT, "precision=bf16", "train.steps=4"]
    two = launch(
        TORCHRUN,
        program(tmp_path, NOTING),
        "train",
        "digits",
        *settings,
        "parallel=fsdp",
        out=tmp_path / "two",
    )
    assert two.returncode == 0, two.stderr
    assert (
        two.stderr.count(
            "precisions [(torch.float32, torch.bfloat16), (torch.float32, torch.float32)]"
        )
        == 2
    )
    soflow.train("digits", tmp_path / "one", settings)
    losses = [
        [line["loss"] for line in RunFolder(tmp_path / out).read_metrics()]
        for out in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fsdp_with_one_process_is_rejected(one, tmp_path):
    soflow.train("digits", tmp_path / "run", [*DIT, "train.accumulate=2", "parallel=fsdp"])
    assert_same_bits(last(one), last(tmp_path / "run"))


SLOW = pytest.mark.slow
#: Rank 1 does not return from step 5.
FAILING = """
import os, signal
from soflow.errors import RunError
from soflow.training.step import TrainStep
step = TrainStep.__call__

def failing(self, k):
    if k == 5 and os.environ["RANK"] == "1":
        {what}
    return step(self, k)

TrainStep.__call__ = failing
"""


@pytest.mark.parametrize(
    ("parallel", "what", "message", "status"),
    [
        pytest.param(
            "fsdp",
            "raise RunError('its disk is full')",
            "soflow: process 1: its disk is full",
            1,
            marks=SLOW,
        ),
        pytest.param(
            "ddp",
            "raise ZeroDivisionError('a bug')",
            "[rank1]: ZeroDivisionError: a bug",
            1,
            marks=SLOW,
        ),
        pytest.param(
            "ddp",
            "os.kill(os.getpid(), signal.SIGKILL)",
            "traceback : Signal 9 (SIGKILL) received by PID",
            -9,
            marks=pytest.mark.processes,
        ),
    ],
    ids=["error", "bug", "killed"],
)
def test_when_one_process_ends_the_others_end_and_it_is_reported(
    parallel, what, message, status, one, tmp_path
):
    file, settings = program(tmp_path, FAILING.format(what=what)), [*DIT, "train.accumulate=2"]
    start = time.monotonic()
    process = launch(
        TORCHRUN, file, "train", "digits", *settings, f"parallel={parallel}", out=tmp_path / "run"
    )
    assert time.monotonic() - start < 60
    assert process.returncode == 1
    lines = process.stderr.splitlines()
    assert [line for line in lines if message in line] != []
    assert sum("soflow: another process of this run has ended" in line for line in lines) == 1
    assert not any(
        "[rank0]" in line for line in lines
    )  # no traceback from processes that only lost another one
    cause = process.stderr.split("Root Cause (first observed failure)")[1]
    assert "rank      : 1 " in cause
    assert f"exitcode  : {status} " in cause
    assert last(tmp_path / "run").step == 4
    soflow.train("digits", tmp_path / "run", settings)
    assert_same_training(one, tmp_path / "run")


@pytest.mark.slow
def test_a_batch_that_cannot_be_split_is_one_line_per_process(tmp_path):
    process = launch(
        TORCHRUN,
        "-m",
        "soflow",
        "train",
        "digits",
        *DIT,
        "train.batch_size=15",
        out=tmp_path / "run",
    )
    assert process.returncode != 0
    said = sorted(line for line in process.stderr.splitlines() if "soflow: " in line)
    assert len(said) == 2
    assert said[0].startswith("soflow: process 1: ")
    assert all("train.batch_size=15" in line and "2 processes" in line for line in said)
    assert "exitcode  : 2 " in process.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrapper", ["FSDP", "DEEPSPEED"])
def test_accelerates_own_wrappers_are_rejected(wrapper, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{wrapper}", "true")
    with pytest.raises(InputError, match=rf"{wrapper}.*parallel=fsdp"):
        soflow.train("digits", tmp_path / "run", DIT)
    assert not (tmp_path / "run").exists()


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    """Like on machines without a shared file system."""
    soflow.train("digits", tmp_path / "run", DIT)
    monkeypatch.setattr(trainer, "gather_number", lambda accelerator, number: [number, -1])
    with pytest.raises(RunError, match=str(tmp_path / "run")):
        soflow.train("digits", tmp_path / "run", DIT)


#: Row 5 of the batch of step 5, on rank 1, is not finite.
POISONED = """
from dataclasses import replace
from soflow.data import sources
from soflow.data.batches import Batches
real = sources.digits("train")
real.rows[int(Batches(real, 16, 0).indices(4)[5])] = float("nan")
getattr(sources.SOURCES, "entries", sources.SOURCES)["digits"] = lambda *arguments: real
"""


@pytest.mark.processes
def test_a_nonfinite_loss_in_one_process_stops_all_at_the_same_step(tmp_path):
    process = launch(
        TORCHRUN,
        program(tmp_path, POISONED),
        "train",
        "digits",
        *DIT,
        "train.accumulate=2",
        out=tmp_path / "run",
    )
    assert process.returncode != 0
    lines = [line for line in process.stderr.splitlines() if "soflow: " in line]
    said = {line.partition("soflow: ")[2].removeprefix("process 1: ") for line in lines}
    assert len(lines) == 2
    (said,) = said  # each knows what went wrong in the other
    assert said.startswith(
        "the loss of the term 'flow_matching' is nan at step 5, in row 5 of the batch (sample"
    )
    assert last(tmp_path / "run").step == 4


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_skip_the_same_step_as_one(parallel, tmp_path):
    settings = [*DIT, "train.on_nonfinite=skip", f"parallel={parallel}"]
    for out, launcher in (("one", [sys.executable]), ("two", TORCHRUN)):
        process = launch(
            launcher, program(tmp_path, POISONED), "train", "digits", *settings, out=tmp_path / out
        )
        assert process.returncode == 0, process.stderr
        assert "at step 5" in process.stderr
        assert "skipping the update (1 of at most 100)" in process.stderr
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert last(tmp_path / "two").train_state().skipped == 1


@pytest.mark.slow
def test_a_folder_in_use_is_rejected_by_several_processes(tmp_path):
    with only_trainer_of(tmp_path / "run"):
        process = launch(TORCHRUN, "-m", "soflow", "train", "digits", *DIT, out=tmp_path / "run")
    assert process.returncode != 0
    assert (
        f"soflow: {tmp_path / 'run'} is being trained by process {os.getpid()} on" in process.stderr
    )
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_sigterm_to_all_processes_loses_nothing(tmp_path):
    settings = [*DIT, "train.steps=400", "checkpoint.every=300", "checkpoint.keep_last=1"]
    command = [*TORCHRUN, "-m", "soflow", "train", "digits", *settings, "--out"]
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    assert launch(command, str(whole.path)).returncode == 0
    process = subprocess.Popen(
        [*command, str(stopped.path)],
        stderr=subprocess.PIPE,
        text=True,
        env=ALONE,
        start_new_session=True,
    )
    while not stopped.read_metrics():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert "stopped by SIGTERM, checkpoint written" in error
    assert 2 <= last(stopped.path).step < 300
    again = launch(command, str(stopped.path))
    assert again.returncode == 0, again.stderr
    assert_same_run(whole.path, stopped.path)

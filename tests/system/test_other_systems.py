"""Simulates other operating systems by removing functions that they lack."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import soflow
from soflow.comparison import measure
from soflow.data import file_fingerprints
from soflow.data.dataset import DataRecord
from soflow.data.file_fingerprints import ENDS, ends, file_of, last_change
from soflow.drawing import sample_many
from soflow.errors import InputError
from soflow.sampling import SAMPLERS
from soflow.system.atomic import flush_folder
from soflow.training.ema import Ema
from soflow.training.trainer import Trainer
from soflow.workflows import sample as sampling_workflow
from soflow.workflows.load import load
from soflow.workflows.sample import sample_to_file
from soflow.workflows.sample_request import SampleRequest
from support.float64 import NoFloat64
from support.settings import TINY_DIT

SOURCES = sorted(Path(soflow.__file__).parent.rglob("*.py"))
#: Modules and functions that are missing or behave differently on Windows.
POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "select", "termios", "tty"}
POSIX_CALLS = {
    "os": {
        "pread", "pwrite", "fork", "forkpty", "wait", "waitpid", "kill", "killpg", "setsid",
        "getuid", "geteuid", "getgid", "statvfs", "fchmod", "chown", "mkfifo", "nice", "uname",
        "sched_getaffinity", "sync", "fdatasync", "posix_fadvise", "O_DIRECTORY", "rename",
    },
    "signal": {
        "SIGALRM", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "alarm", "setitimer",
        "pause", "pthread_sigmask",
    },
}  # fmt: skip
TINY = [*TINY_DIT, "train.steps=2", "train.batch_size=16", "train.sample_every=0"]


def images(folder, count=9):
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        picture = random.integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


# Files and processes


def test_no_source_calls_posix_only_functions():
    found = []
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guarded = {
            id(inner) for outer in ast.walk(tree) if isinstance(outer, ast.Try)
            for inner in ast.walk(outer)
        }  # fmt: skip
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.Import) and id(node) not in guarded:
                names = {alias.name for alias in node.names} & POSIX_MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or ""} & POSIX_MODULES
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = {node.attr} & POSIX_CALLS.get(node.value.id, set())
            found += [f"{file.name}:{node.lineno} {name}" for name in names]
    assert found == []


def test_every_text_file_is_read_as_utf_8():
    """The default encoding on Windows is not UTF-8."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = {keyword.arg for keyword in node.keywords}
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text"):
                lacks = not node.args and "encoding" not in named
            elif isinstance(function, ast.Name) and function.id == "open":
                mode = node.args[1].value if len(node.args) > 1 else "r"
                lacks = "b" not in mode and "encoding" not in named
            elif isinstance(function, ast.Attribute) and function.attr in ("Popen", "run"):
                lacks = "text" in named and "encoding" not in named
            else:
                lacks = False
            if lacks:
                found.append(f"{file.name}:{node.lineno}")
    assert found == []


def test_a_folder_of_images_is_read_without_pread(tmp_path, monkeypatch):
    folder = images(tmp_path / "images")
    monkeypatch.delattr(os, "pread")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = ["data.source=folder", f"data.path={folder}", "data.size=8", "data.num_classes=0"]
    more = ["train.batch_size=4", "objective.guidance.scale=1"]
    run = soflow.train("digits", tmp_path / "run", [*TINY, *recipe, *more])
    assert DataRecord.read(run.data).count == len(list(folder.iterdir()))


def test_both_ends_of_a_file_are_fingerprinted(tmp_path):
    file, content = tmp_path / "image.png", bytearray(range(256)) * 64
    seen = set()
    for changed in (None, 0, ENDS - 1, len(content) - ENDS, len(content) - 1):
        other = bytearray(content)
        if changed is not None:
            other[changed] ^= 1
        file.write_bytes(other)
        seen.add(ends(str(file), len(content)))
    assert len(seen) == 5
    file.write_bytes(content[:ENDS] + bytes(len(content) - 2 * ENDS) + content[-ENDS:])
    assert ends(str(file), len(content)) in seen  # the middle is not read


def test_on_windows_the_modification_time_shows_changes(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    file = file_of("file", (tmp_path / "file").stat())._replace(changed=1, modified=2)
    assert last_change(file) == 1
    monkeypatch.setattr(file_fingerprints.os, "name", "nt")
    assert last_change(file) == 2


def test_peak_memory_is_known_without_the_module_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(measure.Path, "is_file", lambda path: False)  # also without /proc
    assert measure.peak_bytes(torch.device("cpu")) > 10**7


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_folders_that_cannot_be_flushed_are_supported(code, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert flush_folder(tmp_path) is None
    code = errno.EIO  # a disk error is an error on every system
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        flush_folder(tmp_path)


@pytest.mark.parametrize("ending", [".png", ".npz", ""])
def test_no_memory_mapped_file_is_removed(ending, tiny_run, tmp_path, monkeypatch):
    """Windows does not allow it."""
    remove, removed = sampling_workflow.shutil.rmtree, []

    def checked(folder):
        mapped = Path("/proc/self/maps")
        assert not mapped.exists() or str(folder) not in mapped.read_text(errors="replace")
        removed.append(folder)
        remove(folder)

    monkeypatch.setattr(sampling_workflow.shutil, "rmtree", checked)
    run = load(tiny_run, device="cpu")
    sample_to_file(run, SampleRequest.of(run, 4), tmp_path / f"samples{ending}")
    assert len(removed) == 1


def test_characters_that_a_pipe_cannot_encode_are_escaped():
    program = (
        "import sys, soflow.cli.main as main, soflow.__main__ as program\n"
        "main.run = lambda arguments: print('caf\\u00e9')\n"
        "program.main()"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == b"caf\\xe9"


# Numbers


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.name=soflow"], ["objective.name=mean_flow"], ["objective.name=shortcut"],
        ["objective.name=consistency"], ["objective.name=flow_matching"],
        ["noising.name=trig", "noising.parameterization=trig", "optimizer.clip=1"],
        ["network.name=unet", "network.model_channels=32", "network.blocks=1", "data.num_classes=0",
         "objective.guidance.scale=1", "data.augment=0.1", "optimizer.name=radam"],
    ],
    ids=lambda settings: settings[0],
)  # fmt: skip
def test_no_step_needs_float64(settings, tmp_path, monkeypatch):
    step = Trainer.timed_step

    def without(trainer):
        with NoFloat64():
            step(trainer)

    with NoFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.zeros(1, dtype=torch.float64)
    monkeypatch.setattr(Trainer, "timed_step", without)
    small = ["train.steps=2", "train.batch_size=16", "train.sample_every=0"]
    network = [] if "network.name=unet" in settings else TINY_DIT
    run = soflow.train("digits", tmp_path, [*small, *network, *settings])
    assert (run.checkpoints / "step-00000002").is_dir()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_needs_float64(sampler, tiny_run):
    model = load(tiny_run, device="cpu").model
    with NoFloat64():
        samples = sample_many(model, 4, torch.arange(4), sampler, 2, seed=0)
    assert samples.dtype == torch.float32


def test_float64_ema_weights_are_rejected_without_float64():
    network = torch.nn.Linear(2, 2)
    with NoFloat64():
        Ema(network)
        with pytest.raises(InputError, match=r"ema\.float64 is true.*ema\.float64=false"):
            Ema(network, float64=True)

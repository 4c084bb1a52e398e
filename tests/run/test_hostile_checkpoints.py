"""Damaged and malicious checkpoints are named and never run code."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import soflow
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import VERSION, checkpoints, checksum_of, newest_good
from soflow.run.folder import RunFolder
from soflow.system.fingerprints import checksum
from soflow.system.progress import silent
from support.hostile import Canary
from support.whole_runs import WHOLE, add_figures

FILES = ("model.safetensors", "ema.safetensors", "optimizer.pt", "state.json")
RECIPE, SETTINGS = WHOLE["moons"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return soflow.train(RECIPE, out, SETTINGS, progress=silent)


@st.composite
def damage(draw, content):
    """Returns the bytes truncated, with a flipped bit, or with replaced or inserted bytes."""
    kind = draw(st.sampled_from(["cut", "flip", "overwrite", "insert"]))
    place = draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return (
            content[:place]
            + bytes([content[place] ^ 1 << draw(st.integers(0, 7))])
            + content[place + 1 :]
        )
    some = draw(st.binary(min_size=1, max_size=40))
    return content[:place] + some + content[place + (len(some) if kind == "overwrite" else 0) :]


@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_damage_of_any_kind_is_detected_and_skipped(name, examples, whole, tmp_path):
    folder = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    older, newest = checkpoints(folder.checkpoints)
    file = newest.path / name
    content, state = file.read_bytes(), newest.record()
    tried = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage(content))
    def attack(damaged):
        nonlocal tried
        tried += 1
        file.write_bytes(damaged)
        if newest.problem() is None:  # 1e-05 and 1E-05 are one bit apart and equal
            assert damaged == content or name == "state.json"
            assert newest.record() == state
            return
        assert str(file) in newest.problem()
        assert "\n" not in newest.problem()
        good, problems = newest_good(folder.checkpoints)
        assert good == older
        assert len(problems) == 1
        for read in (
            newest.train_state,
            lambda: newest.weights("raw"),
            lambda: newest.weights("ema"),
            newest.optimizer_state,
        ):
            try:
                read()
            except RunError as error:
                assert str(newest.path) in str(error)

    attack()
    if examples > 40:
        add_figures(**{f"damaged {name}": tried})


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def compressed(content):
    """A torch file whose members expand to a thousand times their size."""
    stream, bomb = io.BytesIO(content), io.BytesIO()
    with (
        zipfile.ZipFile(stream) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return bomb.getvalue()


def moments(**changed):
    tensors = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.zeros(3),
        "exp_avg_sq": torch.zeros(3),
        **changed,
    }
    return {"state": {0: tensors}, "param_groups": [{"params": [0]}]}


def optimizers(mark, right=None):
    """Invalid optimizer states, and states of other networks. `right` is a valid state."""
    right = right or moments()
    return {
        "a pickle": pickle.dumps(Canary(mark)),
        "a pickle of protocol 0": pickle.dumps(Canary(mark), protocol=0),
        "a torch file that runs code": saved({"state": {}, "param_groups": [Canary(mark)]}),
        "compressed": compressed(saved({"state": {0: torch.zeros(2**20)}, "param_groups": []})),
        "nothing": b"",
        "no zip": b"PK\x03\x04" + bytes(100),
        "a list": saved([1, 2]),
        "no state": saved({"param_groups": []}),
        "a state that is none": saved({"state": [1], "param_groups": []}),
        "a moment that is missing": saved({**right, "state": {0: {"step": torch.tensor(1.0)}}}),
        "another optimizer's": saved(
            {**right, "state": {0: {**right["state"][0], "momentum_buffer": torch.zeros(())}}}
        ),
        "wrong shapes": saved(moments()),
        "a tensor of a terabyte": saved(moments(exp_avg=torch.zeros(1).expand(2**20, 2**18))),
        "text for tensors": saved(moments(exp_avg="text")),
        "unknown parameters": saved({"state": {10**6: moments()["state"][0]}, "param_groups": []}),
        "names for numbers": saved({"state": {"a": moments()["state"][0]}, "param_groups": []}),
    }


def header(tensors, data=b""):
    text = json.dumps(tensors).encode() if isinstance(tensors, dict) else tensors
    return struct.pack("<Q", len(text)) + text + data


def weights(mark, names=("a",)):
    """Invalid safetensors files, and files of other networks. `names` are the network's tensors."""
    return {
        "a pickle": pickle.dumps(Canary(mark)),
        "a torch file": saved({"a": torch.zeros(3)}),
        "nothing": b"",
        "a header beyond the file": struct.pack("<Q", 2**40) + b"{}",
        "a header of 2^64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
        "no JSON": header(b"{" * 1000),
        "deep JSON": header(b'{"a":' * 50_000),
        "data beyond the file": header(
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        ),
        "a shape that overflows": header(
            {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "a shape below zero": header(
            {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "no such type": header(
            {"a": {"dtype": "EVIL", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "other names": save({"../../evil": torch.zeros(3)}),
        "no tensors": save({}),
        "tensors of one number": save({name: torch.zeros(()) for name in names}),
    }


def states():
    """Contents of state.json that can have a valid checksum."""
    wrong = {
        "a step that is text": {"step": "8"},
        "a step below zero": {"step": -8},
        "another step": {"step": 7},
        "a step beyond all numbers": {"step": 10**400},
        "a mean without a count": {"means": {"loss": {"total": 1.0, "count": None}}},
        "a mean of text": {"means": {"loss": {"total": "a", "count": "b"}}},
        "a best step beyond all numbers": {"best_step": 10**400},
        "skipped below zero": {"skipped": -1},
    }
    plain = {
        "step": 8,
        "seconds": 0.0,
        "means": {},
        "best": None,
        "best_of": "",
        "best_step": 0,
        "skipped": 0,
        "due": False,
    }
    return {name: {**plain, **values} for name, values in wrong.items()}


def seal(checkpoint, state):
    """Writes state.json with valid checksums of itself and of the other files."""
    values = {
        "version": VERSION,
        "state": state,
        "checksums": {name: checksum(checkpoint.path / name) for name in FILES[:3]},
    }
    content = json.dumps({**values, "checksum": checksum_of(values)})
    (checkpoint.path / "state.json").write_text(content)


CASES = [
    *[("optimizer.pt", name) for name in optimizers("")],
    *[(file, name) for file in ("model.safetensors", "ema.safetensors") for name in weights("")],
    *[("state.json", name) for name in states()],
]


@pytest.mark.parametrize(("file", "what"), CASES, ids=[f"{file}, {what}" for file, what in CASES])
def test_a_forged_checkpoint_is_a_one_line_error(file, what, whole, tmp_path):
    """Checksums are valid. No code runs, and memory stays below the size of the file."""
    mark = tmp_path / "mark"
    folder = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(checkpoints(folder.checkpoints)[0].path)
    (checkpoint,) = checkpoints(folder.checkpoints)
    right = checkpoint.optimizer_state()
    state = {**vars(checkpoint.train_state()), "due": True}
    if file == "optimizer.pt":
        (checkpoint.path / file).write_bytes(optimizers(mark, right)[what])
    elif file != "state.json":
        (checkpoint.path / file).write_bytes(weights(mark, list(checkpoint.weights("raw")))[what])
    seal(checkpoint, states()[what] if file == "state.json" else state)
    with pytest.raises((RunError, InputError)) as raised:
        soflow.train(RECIPE, folder.path, SETTINGS, progress=silent)
    assert "step-00000008" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert what != "compressed" or "compressed" in str(raised.value)
    if file in ("ema.safetensors", "state.json"):
        with pytest.raises((RunError, InputError)):
            soflow.load(folder.path)
    assert not mark.exists()

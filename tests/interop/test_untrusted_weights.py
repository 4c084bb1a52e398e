"""Untrusted weights and checkpoints are read or rejected with one line. Their code never runs."""

import zipfile

import pytest
import torch

from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.interop.reference import import_checkpoint
from soflow.interop.weights import named_tensors, read_file
from support import hostile
from support.archives import write_zip
from support.hostile import Canary


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"model": Canary(canary)}, tmp_path / "new.pt")
    torch.save({"model": Canary(canary)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(hostile.pickled(Canary(canary)))
    (tmp_path / "named.safetensors").write_bytes(hostile.pickled(Canary(canary)))
    for name in ("new.pt", "old.pt", "bare.pt", "named.safetensors"):
        with pytest.raises(InputError):
            read_file(tmp_path / name)
    assert not canary.exists()


def test_tensors_with_stride_zero_allocate_no_memory(tmp_path):
    for tensor in (
        torch.zeros(1).expand(2**40),
        torch.zeros(2**45, 0),
        torch.zeros(8, device="meta"),
        torch.eye(2).to_sparse(),
    ):
        torch.save({"w": tensor}, tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"\bw\b"):
            named_tensors(read_file(tmp_path / "w.pt"), "it")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    write_zip(tmp_path / "w.pt", members)
    with pytest.raises(InputError, match=r"w\.pt"):
        read_file(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "strange",
    [
        {"finished_steps": "x" * 10**6},
        {"finished_steps": torch.ones(1, device="meta")},
        {"finished_steps": [10**600] * 100},
        {"model": {10**600: torch.ones(1)}},
        {"optimizer": {"state": {}, "param_groups": [{"params": [10**600]}]}},
        {"optimizer": {"state": [], "param_groups": 3}},
    ],
)
def test_checkpoints_with_unexpected_parts_are_rejected(strange, tmp_path):
    network = make_network(read_recipe("digits", hostile.TINY))
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {"model": state, "ema_model": state, "finished_steps": 3, **strange}, tmp_path / "c.pt"
    )
    (tmp_path / "r.yaml").write_text("learning_rate: 1.0e-4\n")
    with pytest.raises(InputError) as raised:
        import_checkpoint(tmp_path / "c.pt", tmp_path / "r.yaml", tmp_path / "run", heads=2)
    assert len(str(raised.value)) < 1000


def test_an_optimizer_with_impossible_steps_is_rejected(tmp_path):
    network = make_network(read_recipe("digits", hostile.TINY))
    optimizer = torch.optim.AdamW(network.parameters())
    sum(p.sum() for p in network.parameters() if p.requires_grad).backward()
    optimizer.step()
    kept = optimizer.state_dict()
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    (tmp_path / "r.yaml").write_text("learning_rate: 1.0e-4\n")
    for step in (10**400, -1, float("nan"), torch.ones(2)):
        next(iter(kept["state"].values()))["step"] = step
        torch.save(
            {"model": state, "ema_model": state, "finished_steps": 3, "optimizer": kept},
            tmp_path / "c.pt",
        )
        with pytest.raises(InputError, match="'optimizer'"):
            import_checkpoint(tmp_path / "c.pt", tmp_path / "r.yaml", tmp_path / "run", heads=2)
    for option in ("lr", "weight_decay"):
        kept["param_groups"][0][option] = torch.ones(3)
        torch.save(
            {"model": state, "ema_model": state, "finished_steps": 3, "optimizer": kept},
            tmp_path / "c.pt",
        )
        with pytest.raises(InputError, match="optimizer"):
            import_checkpoint(tmp_path / "c.pt", tmp_path / "r.yaml", tmp_path / "run", heads=2)
        kept["param_groups"][0][option] = 0.1

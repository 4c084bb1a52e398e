"""Untrusted latents and autoencoders never run code or follow paths."""

import json
import os

import h5py
import numpy as np
import pytest
import torch

from soflow.data.autoencoder import load_autoencoder
from soflow.data.latents import load_latents
from soflow.data.shards import Index
from soflow.errors import InputError, RunError
from soflow.system.fingerprints import checksum
from support import hostile
from support.archives import npy
from support.hostile import Canary
from support.small_data import make_vae


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


ROWS = np.abs(np.random.default_rng(0).normal(size=(4, 8, 2, 2))).astype(np.float32)


def secret(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["latents"], file["labels"], file["amount"] = ROWS, np.arange(4), 4
    ROWS.tofile(tmp_path / "secret.bin")
    return tmp_path / "secret.h5"


def external_link(file, name, tmp_path):
    file[name] = h5py.ExternalLink(str(secret(tmp_path)), name)


def soft_link(file, name, tmp_path):
    file["elsewhere"] = h5py.ExternalLink(str(secret(tmp_path)), "/")
    file[name] = h5py.SoftLink(f"/elsewhere/{name}")


def external_storage(file, name, tmp_path):
    secret(tmp_path)
    shape = ROWS.shape if name == "latents" else (4,)
    kind = "f4" if name == "latents" else "i8"
    file.create_dataset(name, shape, kind, external=[(str(tmp_path / "secret.bin"), 0, 2**20)])


def virtual(file, name, tmp_path):
    shape, kind = (ROWS.shape, "f4") if name == "latents" else ((4,), "i8")
    layout = h5py.VirtualLayout(shape, kind)
    layout[:] = h5py.VirtualSource(str(secret(tmp_path)), name, shape)
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("name", ["latents", "labels", "amount"])
@pytest.mark.parametrize("lead", [external_link, soft_link, external_storage, virtual])
def test_hdf5_links_to_other_files_are_rejected(lead, name, tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as file:
        if name != "latents":
            file["latents"] = ROWS
        lead(file, name, tmp_path)
    with pytest.raises(InputError, match=rf"l\.h5.* its {name}"):
        load_latents(str(tmp_path / "l.h5"), "train")


def test_hdf5_with_a_false_size_is_rejected_before_reading(tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file.create_dataset("latents", (10**12, 8, 2, 2), "f4", chunks=(1, 8, 2, 2))
    with pytest.raises(InputError, match="factor of 100"):
        load_latents(str(tmp_path / "l.h5"), "train")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["latents"] = ROWS
        file.create_dataset("labels", (10**12,), "i8", chunks=(10,))
    with pytest.raises(InputError, match="1000000000000 labels"):
        load_latents(str(tmp_path / "l.h5"), "train")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["latents"], file["labels"] = ROWS, np.array([0, 1, 2, 10**15])
    with pytest.raises(InputError, match="1000000000000000"):
        load_latents(str(tmp_path / "l.h5"), "train")


def test_an_index_cannot_name_files_but_links_are_followed(tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    hostile.write_latents(folder, ROWS)
    index = json.loads((folder / "index.json").read_text())
    names = {"files": ["/etc/passwd"], "shards": ["../x.npy"], "name": "../../x"}
    (folder / "index.json").write_text(json.dumps({**index, **names}))
    assert len(load_latents(str(folder), "train")) == 4
    os.rename(folder / "shard-00000.npy", tmp_path / "moved.npy")
    (folder / "shard-00000.npy").symlink_to(tmp_path / "moved.npy")
    assert len(load_latents(str(folder), "train")) == 4


def test_shards_of_another_type_are_named(tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    hostile.write_latents(folder, ROWS)
    index = Index.read(folder / "index.json")
    for content in (
        npy(ROWS[:1]),
        npy(ROWS.astype("f8")),
        npy(ROWS[:2, :4]),
        npy(np.array([Canary(tmp_path / "c")], object)),
        b"x",
    ):
        (folder / "shard-00001.npy").write_bytes(content)
        index.checksums[1] = checksum(folder / "shard-00001.npy")
        index.write(folder / "index.json")
        with pytest.raises(RunError, match=r"shard-00001\.npy is damaged"):
            load_latents(str(folder), "train")
    assert not (tmp_path / "c").exists()


def test_autoencoders_need_safetensors_next_to_their_configuration(tmp_path):
    vae = make_vae(tmp_path / "vae")
    good = load_autoencoder(str(vae)).module.state_dict()
    weights = vae / "diffusion_pytorch_model.safetensors"
    for change in (
        {"scaling_factor": "much"},
        {"scaling_factor": [1]},
        {"shift_factor": "some"},
        {"in_channels": "three"},
    ):
        settings = json.loads((vae / "config.json").read_text())
        (tmp_path / "strange").mkdir(exist_ok=True)
        (tmp_path / "strange" / "config.json").write_text(json.dumps({**settings, **change}))
        (tmp_path / "strange" / weights.name).write_bytes(weights.read_bytes())
        with pytest.raises(InputError, match="strange"):
            load_autoencoder(str(tmp_path / "strange"))
    for text in ("[" * 100_000, "[]", '{"_class_name": "FluxPipeline"}', '{"_class_name": ["a"]}'):
        (tmp_path / "strange" / "config.json").write_text(text)
        with pytest.raises(InputError):
            load_autoencoder(str(tmp_path / "strange"))
    index = {"metadata": {}, "weight_map": {"a": f"../strange/{weights.name}"}}
    (vae / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json refers to"):
        load_autoencoder(str(vae))
    (vae / f"{weights.name}.index.json").unlink()
    weights.unlink()
    for content in (Canary(tmp_path / "canary"), good):
        torch.save(content, vae / "diffusion_pytorch_model.bin")
        with pytest.raises(InputError, match="vae"):
            load_autoencoder(str(vae))
    assert not (tmp_path / "canary").exists()

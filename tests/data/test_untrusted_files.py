"""Files from outside, damaged or meant to harm, are read or refused in one line; nothing in them runs or leads elsewhere.

The attacks of tests/hostile.py run here with some cases each, and with thousands behind the mark slow.
"""

import io
import json
import os
import struct
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.data import npz, sources
from soflow.data.arrays import ArrayImages
from soflow.data.autoencoder import load_autoencoder
from soflow.data.cache import cached
from soflow.data.folder import FolderImages
from soflow.data.huggingface import HuggingFaceImages, open_splits
from soflow.data.images import decode, open_image
from soflow.data.latents import load_latents
from soflow.errors import InputError, RunError
from soflow.evaluation.references import arrays_in, read
from soflow.evaluation.sample_set import open_sample_set
from soflow.interop.files import named_tensors, read_file
from soflow.interop.reference import import_checkpoint
from soflow.run.checkpoint import VERSION
from soflow.run.folder import RunFolder
from support import hostile
from support.commands import assert_fails
from support.hostile import Canary, withstands
from support.small_data import make_vae, pixels, write_folder, write_parquet
from support.whole_runs import add_figures

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=1>', "\x1b[31mred\n$\\foo$")
ATTACKS = {
    "configurations": lambda count, folder: hostile.attack_configuration(count),
    "YAML files": hostile.attack_yaml,
    ".npz files": hostile.attack_npz,
    "safetensors files": hostile.attack_safetensors,
    "checkpoints": hostile.attack_checkpoints,
    "images": hostile.attack_images,
    "indices of latents": lambda count, folder: hostile.attack_latents(count, folder / "latents"),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_damaged_is_read_or_refused_in_one_line(name, tmp_path):
    assert ATTACKS[name](100, tmp_path) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_thousands_of_damaged_files(name, tmp_path):
    tried = ATTACKS[name](5000, tmp_path)
    assert tried >= 5000
    add_figures(**{f"hostile {name}": tried})


# Configurations


#: Each value holds the one before ten times: ten to the 30 values, and as many pairs.
LAUGHS = "\n".join(
    ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
)
MERGES = "\n".join(
    [
        "a0: &a0 {k: 1}",
        *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 30)),
    ]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "holds more than any configuration"),
        (MERGES, "holds more than any configuration"),
        ("data: &a [*a]", "holds more than any configuration"),
        ("data: &a {shape: *a}", "holds more than any configuration"),
        ("x: '" + "y" * 100_000 + "'", "has more than 100,000 bytes"),
        ("[" * 50_000, "not valid YAML"),
        ("train: {seed: 0x" + "f" * 5000 + "}", "not valid YAML"),
        ("train: {seed: " + "1:" * 5000 + "1}", "not valid YAML"),
        (
            "train: {seed: " + "9" * 90 + "}",
            "train.seed is a number of 299 bits: it must be less than",
        ),
        ("train: {steps: !!int ''}", "not valid YAML"),
        ("train: {steps: !!bool maybe}", "not valid YAML"),
        ("train: {steps: !!timestamp never}", "not valid YAML"),
        ("train: {steps: 2001-99-99}", "not valid YAML"),
        ("train: {steps: !!python/object/apply:os.mkdir [CANARY]}", "not valid YAML"),
        ("data: {source: [" + "z" * 5000 + "]}", r"data.source is \['zzz.*\.\.\."),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("1: 2", "."),
        ('"a\\e[31m\\nb": 2', r"unknown key 'a\\x1b\[31m\\nb'"),
        ("network: {name: !!binary aGVsbG8=}", "network.name is"),
    ],
)
def test_yaml_that_means_harm(text, told, tmp_path):
    (tmp_path / "mine.yaml").write_text(text.replace("CANARY", str(tmp_path / "canary")))
    with pytest.raises(InputError, match=told) as raised:
        read_recipe(str(tmp_path / "mine.yaml"))
    assert len(str(raised.value)) < 2500
    assert str(raised.value).isprintable()
    assert not (tmp_path / "canary").exists()


def test_aliases_and_merges_are_read_as_before(tmp_path):
    data, network = "data: {shape: [&two 2], num_classes: 0}", "network: {name: mlp, width: *two }"
    times = "objective: {times: {t: &t {mean: 1, std: *two }, s: {<<: *t , std: 3}}}"
    (tmp_path / "mine.yaml").write_text("\n".join([data, network, times]))
    assert read_recipe(str(tmp_path / "mine.yaml")).network.width == 2
    times = read_recipe(str(tmp_path / "mine.yaml")).objective.times
    assert (times.s.mean, times.s.std, times.t.std) == (1, 3, 2)


def test_overrides_are_shortened_in_messages():
    with pytest.raises(InputError) as raised:
        read_recipe("digits", ["train.steps=[" + "x" * 100_000])
    assert len(str(raised.value)) < 400


# JSON


DEEP = "[" * 100_000


def test_json_of_other_shapes_is_called_damaged(tmp_path, tiny_run):
    from soflow.system.records import read_json

    for text in (DEEP, "[1]", '{"a": ' + "9" * 5000 + "}", "\x00", '{"a"'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RunError, match="is damaged"):
            read_json(tmp_path / "a.json")


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a run that is trained."""
    import shutil

    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize(
    "data",
    [
        {"class_names": 7},
        {"class_names": [1, 2]},
        {"encoder": {"name": "x", "sclae": 1}},
        {"encoder": {"name": "x", "scale": "1", "shift": 0, "size": 8, "channels": 3}},
        {"encoder": [1]},
    ],
)
def test_data_of_a_run_that_are_none(data, run, inside):
    (run / "data.json").write_text(json.dumps(data))
    assert_fails(
        inside("sample", run, "--num", 1, "--out", run / "x.png"), 1, "data.json is damaged"
    )


# Arrays


def write_npz(file, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def npy(array=None, shape=None, dtype="|u1", rest=b""):
    """The bytes of a .npy; of a shape that need not be that of its values."""
    stream = io.BytesIO()
    if array is not None:
        np.save(stream, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": dtype, "fortran_order": False, "shape": shape}
        )
        stream.write(rest)
    return stream.getvalue()


def all_readers(file):
    """Reads a .npz in each of the ways in which soflow does; asserts that each refuses it, and returns what is told."""
    told = []
    for reader in (
        lambda: list(open_sample_set(file).parts()),
        lambda: read(file, ("arr_0",), arrays_in(file)),
        lambda: ArrayImages(str(file), "train").images,
    ):
        with pytest.raises(InputError) as raised:
            reader()
        told.append(str(raised.value))
    return " ".join(told)


def test_arrays_that_are_said_to_be_larger_than_they_are_take_no_memory(tmp_path):
    for shape in (
        (10**12, 8, 8, 3),
        (2**62, 2, 2, 1),
        (-1, 8, 8, 3),
        (-24, -8, 1, 1),
        (2**31, 2**31, 4, 4),
        (10**4000, 1, 1, 1),
    ):
        file = write_npz(tmp_path / "big.npz", {"arr_0.npy": npy(shape=shape, rest=bytes(192))})
        assert "said to be where 192 are" in all_readers(file) or shape[0] in (-24, 10**4000)
    (tmp_path / "big.npy").write_bytes(npy(shape=(10**12, 8, 8, 3), rest=bytes(192)))
    with pytest.raises(InputError, match=r"cannot be read as \.npz or \.npy"):
        ArrayImages(str(tmp_path / "big.npy"), "train")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': [",
        "{" * 300,
        "(" * 9000,
        "x = 1\n",
        "{'descr': '|u1'",
        "if x:\n    1\n  2\n",
        "'\\N{x}'",
        "\n  '''",
    ],
)
def test_heads_that_python_stumbles_over(header, tmp_path):
    for version in (1, 2, 3):
        length = struct.pack("<H" if version == 1 else "<I", len(header))
        content = b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + bytes(100)
        assert (
            all_readers(write_npz(tmp_path / "strange.npz", {"arr_0.npy": content})).count(
                "is damaged"
            )
            == 3
        )


def test_objects_are_never_unpickled(tmp_path):
    canary = tmp_path / "canary"
    objects = npy(np.array([Canary(canary)], dtype=object))
    all_readers(write_npz(tmp_path / "evil.npz", {"arr_0.npy": objects}))
    (tmp_path / "evil.npy").write_bytes(objects)
    (tmp_path / "pickle.npy").write_bytes(hostile.pickled(Canary(canary)))
    for name in ("evil.npy", "pickle.npy"):
        with pytest.raises(InputError, match="cannot be read"):
            ArrayImages(str(tmp_path / name), "train")
    assert not canary.exists()
    np.load(tmp_path / "evil.npz", allow_pickle=True)["arr_0"]  # the canary sings where it is let
    assert canary.exists()


def test_compression_that_numpy_does_not_write_is_refused(tmp_path):
    for way in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = write_npz(tmp_path / "odd.npz", {"arr_0.npy": npy(pixels(2))}, way)
        assert "compressed in another way" in all_readers(file)


def test_arrays_that_would_grow_without_measure_are_refused(tmp_path, monkeypatch):
    black = np.zeros((200, 16, 16, 3), np.uint8)
    np.savez_compressed(tmp_path / "black.npz", arr_0=black)
    assert ArrayImages(str(tmp_path / "black.npz"), "train").images.shape == black.shape
    monkeypatch.setattr(npz, "LARGE", 2**16)
    assert "more than 100 times as many" in all_readers(tmp_path / "black.npz")
    lying = bytearray((tmp_path / "black.npz").read_bytes())
    place = lying.rindex(b"PK\x01\x02")
    lying[place + 20 : place + 24] = struct.pack(
        "<I", 2**31
    )  # as if the compressed array were large
    (tmp_path / "black.npz").write_bytes(lying)
    assert "more than 100 times as many" in all_readers(tmp_path / "black.npz")


def test_a_zip_file_of_several_disks(tmp_path):
    end = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18)
    for name, reader in (
        ("a.npz", lambda file: ArrayImages(str(file), "train")),
        ("a.pt", read_file),
    ):
        (tmp_path / name).write_bytes(end)
        with pytest.raises(InputError, match="damaged"):
            reader(tmp_path / name)


def test_names_in_archives_lead_nowhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outside = npy(pixels(2, (4, 4, 3)))
    names = ("../out.npy", "/tmp/soflow-test-out.npy", "a/../../out.npy", "C:\\out.npy")
    file = write_npz(
        tmp_path / "here" / "names.npz", {**dict.fromkeys(names, outside), "arr_0.npy": outside}
    )
    list(open_sample_set(file).parts())
    with pytest.raises(InputError, match="several arrays of images"):
        ArrayImages(str(file), "train")
    assert len(ArrayImages(str(file), "train", "../out").images) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "names.npz"]
    assert not Path("/tmp/soflow-test-out.npy").exists()


# Images


def png_of(width, height):
    """A PNG of that size, of a few bytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (png_of(30_000, 30_000), "900000000 pixels"),
        (png_of(12_000, 12_000), "12,000x12,000 pixels, more than 89,478,485"),
        (EPS, "no image"),
        (b"P6 8 8 255\n" + bytes(192), "no image"),
        (b"", "no image"),
    ],
)
def test_images_that_mean_harm_are_unreadable_ones(content, told, tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(120, (8, 8, 3)), names=())
    (photos / "evil.png").write_bytes(content)
    notes = []
    assert len(cached(FolderImages(str(photos), "train"), 8, 3, notes.append)) == 120
    assert "1 of 121 images cannot be read" in notes[0]
    import re

    assert re.search(told, Path(notes[0].rsplit("named in ", 1)[1]).read_text())
    with pytest.raises(InputError, match=r"evil\.png cannot be read as an image"):
        open_sample_set(photos)


def test_a_thin_image_does_not_grow_without_measure(tmp_path):
    Image.new("L", (500_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="pixels, more than"):
        decode(lambda: open_image(tmp_path / "thin.png"), 64, 1)


# Columns and cells


def test_paths_in_cells_are_not_followed_out_of_the_folder(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    Image.fromarray(pixels(1)[0]).save(tmp_path / "secret.png")
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / "set" / "own.png")
    paths = [
        str(tmp_path / "secret.png"),
        "../secret.png",
        "x/../../secret.png",
        "/etc/passwd",
        "own.png",
    ]
    cells = [{"bytes": None, "path": path} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"picture": pa.array(cells, kind)}), tmp_path / "set" / "train.parquet")
    for path in ("set", "set/train.parquet"):
        images = HuggingFaceImages(str(tmp_path / path), "train", "picture")
        opened = []
        for opener in images.openers(range(len(images))):
            try:
                opened.append(opener().size)
            except Exception as error:
                opened.append("outside" if "lies outside" in str(error) else "none")
        assert opened == ["outside", "outside", "outside", "outside", (12, 12)]


def test_cards_and_lists_of_files_are_not_followed_out_of_the_folder(tmp_path):
    write_parquet(tmp_path / "secret", pixels(4))
    write_parquet(tmp_path / "set", pixels(4))
    for files in ("../secret/*.parquet", str(tmp_path / "secret" / "*.parquet")):
        (tmp_path / "set" / "README.md").write_text(
            f'---\nconfigs:\n- config_name: default\n  data_files: "{files}"\n---\n'
        )
        with pytest.raises(InputError, match="lies outside"):
            open_splits.__wrapped__(str(tmp_path / "set"))
    from datasets import Dataset

    Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "secret-set")
    Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    name = next((tmp_path / "secret-set").glob("*.arrow")).name
    state["_data_files"] = [{"filename": f"../secret-set/{name}"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="lies outside"):
        open_splits.__wrapped__(str(tmp_path / "saved"))
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["../secret-set"]}')
    with pytest.raises(InputError, match="lies outside"):
        open_splits.__wrapped__(str(tmp_path / "dict"))


def test_loading_scripts_do_not_run(tmp_path):
    write_parquet(tmp_path / "evil", pixels(4))
    (tmp_path / "evil" / "evil.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n"
    )
    withstands(lambda: HuggingFaceImages(str(tmp_path / "evil"), "train"))
    withstands(lambda: HuggingFaceImages(str(tmp_path / "evil" / "evil.py"), "train"))
    assert not (tmp_path / "canary").exists()
    import datasets

    assert datasets.config.HF_DATASETS_TRUST_REMOTE_CODE is False


def test_parquet_that_is_damaged_is_refused_in_one_line(tmp_path):
    import random

    file = next(write_parquet(tmp_path / "set", pixels(4)).glob("*.parquet"))
    whole, draw = file.read_bytes(), random.Random(0)

    def work():
        open_splits.cache_clear()  # which remembers a path's data for as long as the process lives
        images = HuggingFaceImages(str(file), "train")
        return len(images.openers(range(len(images))))

    assert withstands(work) == 4
    found = []
    for _ in range(8):
        file.write_bytes(hostile.damage(whole, draw))
        found.append(withstands(work))
    assert None in found  # some damage is refused
    assert set(found) <= {None, *range(5)}  # none makes more of it than there was


# Latents


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
def test_hdf5_that_leads_to_other_files_is_refused(lead, name, tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as file:
        if name != "latents":
            file["latents"] = ROWS
        lead(file, name, tmp_path)
    with pytest.raises(InputError, match="lie elsewhere: copy them into the file"):
        load_latents(str(tmp_path / "l.h5"), "train")


def test_hdf5_that_is_said_to_be_large_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file.create_dataset("latents", (10**12, 8, 2, 2), "f4", chunks=(1, 8, 2, 2))
    with pytest.raises(InputError, match="more than 100 times as many"):
        load_latents(str(tmp_path / "l.h5"), "train")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["latents"] = ROWS
        file.create_dataset("labels", (10**12,), "i8", chunks=(10,))
    with pytest.raises(InputError, match="1000000000000 labels for 4 latents"):
        load_latents(str(tmp_path / "l.h5"), "train")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["latents"], file["labels"] = ROWS, np.array([0, 1, 2, 10**15])
    with pytest.raises(InputError, match="labels from 0 to 1000000000000000"):
        load_latents(str(tmp_path / "l.h5"), "train")


def test_an_index_names_no_files_and_a_link_is_followed(tmp_path):
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


def test_shards_of_another_kind_are_named(tmp_path):
    from soflow.system.fingerprints import checksum

    folder = tmp_path / "latents"
    folder.mkdir()
    hostile.write_latents(folder, ROWS)
    index = json.loads((folder / "index.json").read_text())
    for content in (
        npy(ROWS[:1]),
        npy(ROWS.astype("f8")),
        npy(ROWS[:2, :4]),
        npy(np.array([Canary(tmp_path / "c")], object)),
        b"x",
    ):
        (folder / "shard-00001.npy").write_bytes(content)
        index["checksums"][1] = checksum(folder / "shard-00001.npy")
        (folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(RunError, match=r"shard-00001\.npy is damaged"):
            load_latents(str(folder), "train")
    assert not (tmp_path / "c").exists()


# Weights


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


def test_tensors_that_repeat_a_number_without_end_take_no_memory(tmp_path):
    for tensor in (
        torch.zeros(1).expand(2**40),
        torch.zeros(2**45, 0),
        torch.zeros(8, device="meta"),
        torch.eye(2).to_sparse(),
    ):
        torch.save({"w": tensor}, tmp_path / "w.pt")
        with pytest.raises(InputError, match="w is not a tensor of finite floating-point numbers"):
            named_tensors(read_file(tmp_path / "w.pt"), "it")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    write_npz(tmp_path / "w.pt", members)
    with pytest.raises(InputError, match="is compressed, as torch"):
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
def test_checkpoints_of_strange_parts(strange, tmp_path):
    network = make_network(read_recipe("digits", hostile.TINY))
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {"model": state, "ema_model": state, "finished_steps": 3, **strange}, tmp_path / "c.pt"
    )
    (tmp_path / "r.yaml").write_text("learning_rate: 1.0e-4\n")
    with pytest.raises(InputError) as raised:
        import_checkpoint(tmp_path / "c.pt", tmp_path / "r.yaml", tmp_path / "run", heads=2)
    assert len(str(raised.value)) < 1000


def test_an_optimizer_whose_steps_cannot_be(tmp_path):
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
        with pytest.raises(InputError, match="step in 'optimizer' is not a number"):
            import_checkpoint(tmp_path / "c.pt", tmp_path / "r.yaml", tmp_path / "run", heads=2)
    for option in ("lr", "weight_decay"):
        kept["param_groups"][0][option] = torch.ones(3)
        torch.save(
            {"model": state, "ema_model": state, "finished_steps": 3, "optimizer": kept},
            tmp_path / "c.pt",
        )
        with pytest.raises(InputError, match="no state of a torch optimizer"):
            import_checkpoint(tmp_path / "c.pt", tmp_path / "r.yaml", tmp_path / "run", heads=2)
        kept["param_groups"][0][option] = 0.1


def test_autoencoders_are_safetensors_beside_their_configuration(tmp_path):
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
        with pytest.raises(InputError, match="cannot be loaded"):
            load_autoencoder(str(tmp_path / "strange"))
    for text in (DEEP, "[]", '{"_class_name": "FluxPipeline"}', '{"_class_name": ["a"]}'):
        (tmp_path / "strange" / "config.json").write_text(text)
        with pytest.raises(InputError):
            load_autoencoder(str(tmp_path / "strange"))
    index = {"metadata": {}, "weight_map": {"a": f"../strange/{weights.name}"}}
    (vae / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="does not lie beside it"):
        load_autoencoder(str(vae))
    (vae / f"{weights.name}.index.json").unlink()
    weights.unlink()
    for content in (Canary(tmp_path / "canary"), good):
        torch.save(content, vae / "diffusion_pytorch_model.bin")
        with pytest.raises(InputError, match="cannot be loaded"):
            load_autoencoder(str(vae))
    assert not (tmp_path / "canary").exists()


# Reports


class Elements(HTMLParser):
    """The elements of a page, with the names of their attributes, and the texts in it."""

    def __init__(self):
        super().__init__()
        self.elements, self.texts = set(), []

    def handle_starttag(self, tag, attributes):
        self.elements.add((tag, *sorted(name for name, _ in attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def elements_of(page):
    parser = Elements()
    parser.feed(page)
    parser.close()
    return parser.elements, " ".join(parser.texts)


def evaluation(evil, checkpoint):
    names = (
        "distance",
        "kernel_distance",
        "inception_score",
        "precision",
        "recall",
        "density",
        "coverage",
        "recognized",
    )
    figures = {
        **dict.fromkeys(names, 1.0),
        "distance_spread": None,
        "spatial_distance": None,
        "reliable": True,
    }
    of = {"dataset": evil, "split": evil, "count": 5}
    row = {
        **figures,
        "weights": evil,
        "sampler": evil,
        "nfe": 1,
        "distance_at_real_count": 1.0,
        "milliseconds_per_sample": 1.0,
    }
    return {
        "checkpoint": checkpoint, "metric": f"FD-{evil}", "num": 5, "features": {"name": evil, "checksum": evil},
        "reference": {**of, "points": 3},
        "rows": [row, {**row, "sampler": "renoise"}, {**row, "sampler": "heun", "nfe": 64}],
        "real": {**figures, **of, "warnings": [evil], "reference": of}, "diagnostics": {evil: 1.0}, "warnings": [evil],
        "versions": {evil: evil}, "machine": {"device": evil, "processor": evil, "threads": 1}, "seeds": [0, 1],
    }  # fmt: skip


def test_names_in_a_run_do_not_become_elements_of_its_report(run, inside):
    from soflow.config import dump

    checkpoint = max(path.name for path in (run / "checkpoints").glob("step-*"))
    lines = (run / "metrics.jsonl").read_text().splitlines()

    def report(evil, where):
        names = [f"{evil}{i}" for i in range(10)]
        record = {"name": evil, "count": 1, "fingerprint": evil, "class_names": names}
        (run / "data.json").write_text(json.dumps(record))
        (run / "evaluation.json").write_text(json.dumps(evaluation(evil, checkpoint)))
        more = {f"{evil}_mse": 1.0, f"FD-{evil}": 2.0, evil: 3.0}
        (run / "metrics.jsonl").write_text(
            "\n".join(json.dumps({**more, **json.loads(line)}) for line in lines)
        )
        config = read_recipe(str(run)).model_copy(update={"description": evil})
        (run / "config.yaml").write_text(f"version: {VERSION}\n{dump(config)}")
        renamed = run.rename(run.with_name(where))
        result = inside("report", renamed)
        renamed.rename(run)
        assert result.returncode == 0, result.stderr
        return elements_of((run / "report.html").read_text())

    usual, _ = report("plain", "usual")
    for evil in EVIL:
        found, texts = report(evil, evil.replace("/", "|"))
        assert found == usual
        assert evil.splitlines()[0] in texts
    for strange in ({"nfe": EVIL[0]}, {"distance": EVIL[0]}, {"nfe": None}, {"distance": None}):
        values = evaluation("plain", checkpoint)
        values["rows"][0] |= strange
        (run / "evaluation.json").write_text(json.dumps(values))
        assert_fails(inside("report", run), 1, "evaluation.json is damaged")
    (run / "evaluation.json").unlink()
    for line in (
        '{"step": 1, "loss": null}',
        '{"step": 1, "loss": 1, "x": []}',
        '{"step": "<b>", "loss": 1}',
        "[" * 10**5,
        '{"step": 1, "lo',
    ):  # as a crash may leave the last one
        (run / "metrics.jsonl").write_text(lines[0] + "\n" + line + "\n" + lines[1] + "\n")
        assert len(RunFolder(run).read_metrics()) == 2
        assert inside("report", run).returncode == 0


def test_an_evaluation_of_any_shape_is_shown_or_called_damaged(run):
    from soflow.evaluation import report
    from soflow.evaluation.tables import EVALUATION
    from soflow.system.records import read_json
    from soflow.workflows.load import load

    file = run / "evaluation.json"
    file.write_text(json.dumps(evaluation("plain", "step-00000030")))
    model, data, shown = load(run).model, sources.digits("test"), [0]

    def work():
        values = read_json(file, EVALUATION)
        shown[0] += 1
        subject = report.Subject(
            "run", model, data, [], values, "", 1.0, torch.device("cpu"), (), ("renoise", 1)
        )
        (
            report.headline(subject),
            report.quality(values),
            report.comparison([subject, subject]),
            report.cost(subject),
        )

    original, report.embed = report.embed, lambda figure: ""
    try:
        hostile.attack_json(300, file, work)
    finally:
        report.embed = original
    assert shown[0] > 20


def test_names_in_a_comparison_do_not_become_elements_of_its_page():
    from soflow.comparison.page import page

    def elements(evil):
        values = evaluation(evil, "step-00000030")
        cost = dict.fromkeys(
            ("seconds_per_step", "peak_bytes", "flops_per_sample", "one_step_samples_per_second"),
            1.0,
        )
        cost |= {"step_ratio": [1, 1, 1], "memory_ratio": [1, 1, 1], "parameters": 1, "rounds": 1}
        one = {"folder": evil, "seed": 0, "seconds": 1.0, "rows": values["rows"], "diagnostics": {},
               "curve": {f"{evil} 1": [[1, 1.0, 1.0], [2, 2.0, 1.0]]}}  # fmt: skip
        told = {
            "recipe": evil,
            "overrides": [evil],
            "budget": "steps",
            "base": evil,
            "batch_size": 1,
            **values,
            "seeds": [0],
        }
        told["machine"] |= {"cores": 1}
        picture = Image.fromarray(pixels(1)[0])
        methods = {evil: {"steps": 1, "cost": cost, "runs": [one]}}
        return elements_of(page({**told, "seeds": [0], "methods": methods}, {evil: picture}))[0]

    usual = elements("plain")
    for evil in EVIL:
        assert elements(evil) == usual


# The terminal


def test_no_control_characters_reach_the_terminal(inside, tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    assert len(inside("train", "digits", f"train.st{'e' * 10**5}ps").stderr) < 5000
    folder = tmp_path / f"a{evil}b"
    folder.mkdir()
    results = [
        inside("train", "images", f"data.path={folder}"),
        inside("train", f"{folder}/x.yaml"),
        inside("report", folder),
    ]
    (tmp_path / "mine.yaml").write_text('"\\e[2J": 1')
    results += [
        inside("train", tmp_path / "mine.yaml"),
        inside("train", "digits", f"{evil}=1"),
        inside("train", f"--{evil}"),
    ]
    for result in results:
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.isprintable()


def test_a_program_that_a_run_names_is_not_loaded_unasked(run, inside, tmp_path):
    from soflow.config import dump

    file = tmp_path / "features.pt"
    torch.jit.script(torch.nn.Flatten()).save(str(file))
    config = read_recipe(str(run), [f"evaluate.features={file}"])
    (run / "config.yaml").write_text(f"version: {VERSION}\n{dump(config)}")
    result = inside("evaluate", run, "--nfe", 1, "--num", 50)
    assert_fails(result, 2, "a program: if you trust it, give --features", str(file))

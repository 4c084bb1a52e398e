"""Latents in HDF5 files as written by the reference implementation."""

import h5py
import numpy as np
import pytest
import torch

from soflow.data.batches import Batches
from soflow.data.latents import load_latents
from soflow.errors import InputError


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 8, 4, 4), "compression": "gzip"}])
def test_a_file_of_the_reference_implementation_is_read(options, latents, tmp_path):
    rows = load_latents(str(latents)).rows[torch.arange(40)].numpy()
    with h5py.File(tmp_path / "latents.h5", "w") as file:
        file.create_dataset("latents", data=rows, **options)
        file["labels"], file["amount"], file["latent_size"] = np.arange(40) % 10, 40, 4
    dataset = load_latents(str(tmp_path / "latents.h5"), "train")
    which = torch.tensor([39, 3, 3, 0])
    assert torch.equal(dataset.rows[which], torch.from_numpy(rows)[which])
    assert (dataset.shape, dataset.num_classes, dataset.labels[:12].tolist()) == (
        (4, 4, 4),
        10,
        [*range(10), 0, 1],
    )
    assert (dataset.encoder.name, dataset.encoder.scale) == ("stabilityai/sd-vae-ft-mse", 0.18215)
    batch = Batches(dataset, 8, seed=0).microbatch(0)
    assert batch.data.shape == (8, 4, 4, 4)


def test_incomplete_hdf5_files_are_rejected(tmp_path):
    file = tmp_path / "l.h5"
    with pytest.raises(InputError, match=r"data\.path=.*l\.h5"):
        load_latents(str(file), "train")
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"data\.path=.*l\.h5"):
        load_latents(str(file), "train")
    for content, word in (
        ({"images": np.zeros(3)}, "images"),
        ({"latents": np.zeros((4, 8, 2, 2)), "amount": 5}, "amount=5"),
        ({"latents": np.zeros((4, 8, 2, 2)), "latent_size": 32}, "latent_size=32"),
        ({"latents": np.zeros((4, 8, 2, 2)), "labels": np.arange(3)}, "3 labels for 4 latents"),
    ):
        with h5py.File(file, "w") as written:
            for key, value in content.items():
                written[key] = value
        with pytest.raises(InputError, match=word):
            load_latents(str(file), "train")


ROWS = np.abs(np.random.default_rng(0).normal(size=(4, 8, 2, 2))).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (
            {"latents": ROWS[:0], "labels": np.arange(0)},
            r"latents float32\[0, 8, 2, 2\]",
        ),
        ({"latents/part": ROWS}, "no array .latents."),
        ({"latents": ROWS.astype(np.int32)}, r"latents int32\[4, 8, 2, 2\]"),
        (
            {"latents": np.where(np.arange(8)[:, None, None] < 4, ROWS, -ROWS)},
            "negative standard deviations",
        ),
        ({"latents": np.full_like(ROWS, np.nan)}, "non-finite"),
        ({"latents": ROWS, "labels": np.array([b"cat"] * 4)}, "labels that are not integers"),
        ({"latents": ROWS, "labels": np.arange(0)}, "0 labels for 4 latents"),
    ],
)
def test_other_hdf5_files_are_rejected(content, word, tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as written:
        for key, value in content.items():
            written[key] = value
    with pytest.raises(InputError, match=word):
        load_latents(str(tmp_path / "l.h5"), "train")


def test_hdf5_files_in_another_byte_order_are_read(tmp_path):
    with h5py.File(tmp_path / "l.h5", "w") as written:
        written["latents"], written["amount"] = (
            ROWS.astype(">f4"),
            b"four",
        )  # NaN does not determine the byte order
    which = torch.tensor([3, 0])
    dataset = load_latents(str(tmp_path / "l.h5"), "train")
    assert dataset.rows.dtype == torch.float32
    assert torch.equal(dataset.rows[which], torch.from_numpy(ROWS)[which])

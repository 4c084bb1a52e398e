"""Samples into a file: drawn in pieces that several processes share, and that an interrupted call goes on from."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from soflow import __version__
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import Dataset
from soflow.data.shards import Shards, open_store
from soflow.data.store import Piece, Plan, make_store
from soflow.errors import InputError
from soflow.evaluation.pictures import is_image, save_picture, to_pil, to_uint8
from soflow.sampling import Sampler, sample_many
from soflow.system import processes
from soflow.system.atomic import beside, write_json
from soflow.system.fingerprints import fingerprint_of
from soflow.workflows.runs import Run

#: Samples of a piece, and rows of an array written at once.
PIECE, ROWS = 500, 1000


def sample_to_file(
    run: Run,
    file: Path,
    num: int,
    labels: Tensor | None,
    method: Sampler,
    nfe: int,
    seed: int,
    on_done: Callable[[int], None] = lambda done: None,
    told: Mapping[str, Any] | None = None,
) -> bool:
    """`num` samples as a picture (.png), as arrays in ADM's layout (.npz: arr_0 samples, arr_1 labels) or as one PNG each (a
    folder). True when the file is there, False while other processes still draw their pieces.

    Sample i is a function of (seed, i), so the file is the same however many processes draw it. How they were drawn, and
    what is `told` beside, is kept with arrays (protocol, a text) and in a folder (protocol.json). Raises InputError for a
    folder with numbered images that are not those of an earlier call, or that would stay among the new ones.
    """
    require_room(file, num)
    plan = SamplesPlan(
        weights=run.checkpoint.checksum_of(run.weights),
        decoder=decoder_of(run),
        labels=None if labels is None else fingerprint_of(str(labels.tolist())),
        sampler=(method, nfe),
        seed=seed,
        count=num,
        per_shard=PIECE,
    )

    def make(rows: range) -> Piece:
        chosen = None if labels is None else labels[rows.start : rows.stop]
        samples = sample_many(
            run.model, len(rows), chosen, method, nfe, seed, device=run.device, start=rows.start,
            on_batch=lambda done: on_done(min(num, processes.count() * rows.start + done)),
        )  # fmt: skip
        pixels = to_uint8(samples) if is_image(samples.shape[1:]) else samples.numpy()
        return Piece(pixels, None if chosen is None else chosen.tolist())

    name = f".{file.name}.{fingerprint_of(repr(plan))}"
    pieces, whole = (file.absolute().parent / f"{name}.{state}" for state in ("pieces", "whole"))
    if not whole.is_dir():
        if not make_store(pieces, plan, make, processes.index(), processes.count()):
            return False
        try:
            os.rename(pieces, whole)
        except FileNotFoundError:
            return False  # another process saw the last piece at the same time, and is writing the file
    elif processes.index() > 0:
        return False
    rows, _ = open_store(whole)
    protocol = {
        "run": run.folder.path.resolve().name,
        "checkpoint": run.checkpoint.path.name,
        "weights": run.weights,
        "sampler": method,
        "nfe": nfe,
        "seed": seed,
        **(told or {}),
        "versions": {"soflow": __version__, "torch": torch.__version__},
    }
    write(rows, labels, file, protocol)
    shutil.rmtree(whole)
    return True


class SamplesPlan(Plan):
    """What pieces of samples depend on."""

    kind: Literal["samples"] = "samples"
    weights: str
    decoder: tuple[str, float, float] | None
    labels: str | None
    sampler: tuple[str, int]
    seed: int


def decoder_of(run: Run) -> tuple[str, float, float] | None:
    """What latents become images by: the checksum of the autoencoder's weights, scale and shift. None without latents."""
    if not isinstance(run.model.decode, Decoder):
        return None
    autoencoder, _ = run.model.decode.loaded
    return autoencoder.checksum(), autoencoder.encoder.scale, autoencoder.encoder.shift


def require_room(folder: Path, num: int) -> None:
    """Raises InputError where a folder holds images NNNNNN.png that `num` new ones must not replace or lie among."""
    numbered = sorted(
        file for file in folder.glob("*.png") if len(file.stem) >= 6 and file.stem.isdecimal()
    )
    if numbered and not (folder / "protocol.json").is_file():
        told = "which soflow sample did not draw"
    else:
        numbered = [file for file in numbered if int(file.stem) >= num]
        told = "drawn before, which would stay among the new ones"
    if numbered:
        raise InputError(
            f"{folder} holds {numbered[0].name}, {told}: delete what is there or choose another folder with --out"
        )


def write(rows: Shards, labels: Tensor | None, file: Path, protocol: dict[str, Any]) -> None:
    """All rows into their file, or into a file each."""
    if file.suffix == ".png":
        samples = Dataset("samples", "", rows, None).samples()
        save_picture(samples, file, columns=max(1, min(10, len(samples))))
    elif file.suffix == ".npz":
        write_npz(rows, labels, file, protocol)
    else:
        write_json(file / "protocol.json", protocol)
        for i in range(len(rows)):
            to_pil(rows[torch.tensor([i])][0].numpy()).save(file / f"{i:06d}.png")


def write_npz(rows: Shards, labels: Tensor | None, file: Path, protocol: dict[str, Any]) -> None:
    """ADM's layout: arr_0, the samples, and arr_1, their labels; beside them the protocol, JSON in a text. Never
    more than some rows are in memory.
    """
    partial = beside(file)
    with zipfile.ZipFile(partial, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            first = rows[torch.tensor([0])].numpy()
            header = {"descr": first.dtype.str, "fortran_order": False, "shape": tuple(rows.shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            for part in torch.arange(len(rows)).split(ROWS):
                stream.write(rows[part].numpy().tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, labels.numpy())
        with archive.open("protocol.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(json.dumps(protocol)))
    os.replace(partial, file)

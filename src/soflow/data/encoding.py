"""`soflow encode`: encodes images into cached latents for training.

Each process encodes some of the shards, independently of the others. Interrupted encoding resumes.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soflow.config import Config
from soflow.config.reading import keys_of, with_overrides
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.autoencoder import Autoencoder, load_autoencoder
from soflow.data.cache import CHUNK, decode_rows
from soflow.data.dataset import to_floats
from soflow.data.images import find_scale
from soflow.data.latents import LatentsPlan
from soflow.data.store import Piece, combined, items_of_a_shard, make_store
from soflow.errors import InputError
from soflow.system import processes
from soflow.system.devices import default_device
from soflow.system.fingerprints import fingerprint_of
from soflow.system.progress import Progress, track
from soflow.system.text import printable

log = logging.getLogger(__name__)

#: The configuration keys that `encode` takes as overrides.
SETTINGS = ("data.range", "data.num_classes", "data.max_unreadable", "data.subset", "data.revision")


def encode(
    source: str,
    out: str | Path,
    vae: str,
    size: int,
    flip: bool = False,
    batch_size: int = 32,
    columns: tuple[str, str] = ("", ""),
    device: str | None = None,
    progress: Progress = track,
    overrides: Sequence[str] = (),
) -> bool:
    """Encodes images into a folder of latents: their mean and standard deviation in float16.

    Args:
        source: The images, SOURCE[:SPLIT].
        out: The folder to write.
        vae: An autoencoder of diffusers: a name on the Hugging Face Hub, or a folder.
        size: The height and width that images are resized and cropped to, in pixels.
        flip: Whether to also encode horizontally flipped images, as additional rows.
        batch_size: The number of images per batch.
        columns: The columns of images and classes; "" finds them.
        device: The device to encode on. Default: a GPU if available.
        progress: Shows the number of encoded images.
        overrides: `key=value` strings such as `data.range=[0,4095]`, with keys from `SETTINGS`.

    Returns:
        Whether the folder is complete. If not, other processes are still encoding.

    Raises:
        InputError: If the source, the autoencoder or the folder cannot be used.
        RunError: If the folder cannot be written.
    """
    autoencoder = load_autoencoder(vae, device or default_device())
    latent_shape = autoencoder.latent_shape(size)
    encoder = replace(autoencoder.encoder, size=size)
    shape = (encoder.channels, size, size)
    like = settings(overrides).model_copy(
        update={"shape": shape, "image_column": columns[0], "label_column": columns[1]}
    )
    config, split = sources.find(source, like)
    images = sources.open_images(config, split or config.split)
    scale, count = find_scale(images, config.range), len(images)
    for note in (f"values {scale} are scaled to -1 to 1", *images.notes):
        log.info(f"data: {note}")
    asked = "" if config.range == "auto" else f" {config.range}"
    row_bytes = np.dtype(np.float16).itemsize * 2 * prod(latent_shape) * (2 if flip else 1)
    plan = LatentsPlan(
        name=printable(images.name),
        split=images.split,
        source=fingerprint_of(images.fingerprint + asked) if asked else images.fingerprint,
        class_names=images.class_names,
        unlabelled=printable(images.unlabelled),
        encoder=encoder,
        flip=flip,
        count=count,
        per_shard=items_of_a_shard(count, row_bytes),
    )
    chunk = batch_size * max(1, CHUNK // batch_size)  # whole batches
    index, number = processes.index(), processes.count()
    work = progress(f"encoding {images.name}", -(-count // number))
    with work as task, ThreadPoolExecutor() as pool:

        def decode(rows: range) -> Piece:
            return decode_rows(images, rows, (size, size), encoder.channels, pool, scale)

        def make(rows: range) -> Piece:
            done = rows.start // plan.per_shard // number * plan.per_shard  # of this process
            pieces = []
            chunks = [rows[first : first + chunk] for first in range(0, len(rows), chunk)]
            for piece in ahead(decode, chunks):
                latents = latents_of(autoencoder, piece.rows, latent_shape, flip, batch_size)
                labels = piece.labels if piece.labels is None or not flip else piece.labels * 2
                pieces.append(Piece(latents, labels, piece.skipped, piece.done))
                done += len(piece.rows)
                task.update(done)
            return Piece(np.concatenate([piece.rows for piece in pieces]), *combined(pieces))

        return make_store(Path(out), plan, make, index, number, task, config.max_unreadable)


def settings(overrides: Sequence[str]) -> DataConfig:
    """The settings of the data. Raises InputError for keys that encoding does not have."""
    for key in keys_of(overrides):
        if key not in SETTINGS:
            raise InputError(f"soflow encode has no key {key}: choose one of {', '.join(SETTINGS)}")
    return with_overrides(Config(), ["data.num_classes=-1", *overrides]).data


def ahead(decode: Callable[[range], Piece], chunks: Sequence[range]) -> Iterator[Piece]:
    """Decodes each chunk. A thread decodes the next chunk while the caller uses the current one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(decode, chunks[0])
        for chunk in chunks[1:]:
            piece = coming.result()
            coming = thread.submit(decode, chunk)
            yield piece
        yield coming.result()


def latents_of(
    autoencoder: Autoencoder, pixels: np.ndarray, shape: tuple[int, ...], flip: bool, batch: int
) -> np.ndarray:
    """Encodes images (n, H, W, C), then flipped images if requested: (n or 2 n, 2 c, h, w)."""
    c, h, w = shape
    parts: list[Tensor] = [torch.empty(0, 2 * c, h, w)]
    for mirrored in (False, True) if flip else (False,):
        for first in range(0, len(pixels), batch):
            chosen = torch.from_numpy(pixels[first : first + batch])
            images = to_floats(chosen.permute(0, 3, 1, 2))
            parts.append(autoencoder.encode(images.flip(3) if mirrored else images))
    return torch.cat(parts).half().numpy()

"""From images to the cached latents that are trained on: `soflow encode`.

Each process encodes its share of the shards and needs not know of the others; work that was interrupted goes on.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.autoencoder import Autoencoder, load_autoencoder
from soflow.data.cache import CHUNK, decode_rows
from soflow.data.store import Piece, items_of_a_shard, make_store
from soflow.system import processes
from soflow.system.devices import default_device
from soflow.system.progress import counting


def encode(
    source: str,
    out: str | Path,
    vae: str,
    size: int,
    flip: bool = False,
    batch_size: int = 32,
    columns: tuple[str, str] = ("", ""),
    device: str | None = None,
) -> bool:
    """Encodes SOURCE[:SPLIT] into the folder `out`: mean and standard deviation of each image's latents in float16.

    True once the folder is whole, False while other processes are still at it. flip: mirror images, too, as rows of their
    own. columns: of images and of classes, where a source leaves that open. Raises InputError for a source, an autoencoder
    or a folder that cannot be used, RunError where the folder cannot be written.
    """
    autoencoder = load_autoencoder(vae, device or default_device())
    shape = autoencoder.latent_shape(size)
    encoder = replace(autoencoder.encoder, size=size)
    like = DataConfig(
        shape=(encoder.channels, size, size), image_column=columns[0], label_column=columns[1]
    )
    config, split = sources.find(source, like)
    images = sources.open_images(config, split or config.split)
    plan = {
        "kind": "latents",
        "name": images.name,
        "split": images.split,
        "source": images.fingerprint,
        "class_names": list(images.class_names),
        "unlabelled": images.unlabelled,
        "encoder": asdict(encoder),
        "flip": flip,
    }
    count, done = len(images), 0
    chunk = batch_size * max(1, CHUNK // batch_size)  # of whole batches
    with (
        counting(f"encoding {images.name}", -(-count // processes.count())) as on_done,
        ThreadPoolExecutor() as pool,
    ):

        def decode(rows: range) -> Piece:
            return decode_rows(images, rows, size, encoder.channels, pool)

        def make(rows: range) -> Piece:
            pieces: list[Piece] = []
            before = done
            for pixels in ahead(
                decode, [rows[first : first + chunk] for first in range(0, len(rows), chunk)]
            ):
                told = partial(lambda so_far, n: on_done(so_far + n), before)
                latents = latents_of(autoencoder, pixels.rows, shape, flip, batch_size, told)
                labels = pixels.labels if pixels.labels is None or not flip else pixels.labels * 2
                pieces.append(Piece(latents, labels, pixels.skipped, pixels.done))
                before += len(pixels.rows)
            return joined(pieces)

        def on_shard(items: int) -> None:
            nonlocal done
            done = items
            on_done(done)

        row_bytes = np.dtype(np.float16).itemsize * 2 * int(np.prod(shape)) * (2 if flip else 1)
        per_shard = items_of_a_shard(count, row_bytes)
        return make_store(
            Path(out), plan, count, per_shard, make, processes.index(), processes.count(), on_shard
        )


def ahead(decode: Callable[[range], Piece], chunks: Sequence[range]) -> Iterator[Piece]:
    """What is decoded of each chunk; a thread decodes the next while the one before is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(decode, chunks[0])
        for chunk in chunks[1:]:
            piece = coming.result()
            coming = thread.submit(decode, chunk)
            yield piece
        yield coming.result()


def joined(pieces: Sequence[Piece]) -> Piece:
    """Several pieces as one, in their order."""
    done: Counter[str] = Counter()
    for piece in pieces:
        done.update(piece.done)
    labels = [label for piece in pieces for label in piece.labels or ()]
    return Piece(
        np.concatenate([piece.rows for piece in pieces]),
        None if pieces[0].labels is None else labels,
        [reason for piece in pieces for reason in piece.skipped],
        dict(done),
    )


def latents_of(
    autoencoder: Autoencoder,
    pixels: np.ndarray,
    shape: tuple[int, int, int],
    flip: bool,
    batch_size: int,
    on_done: Callable[[int], None],
) -> np.ndarray:
    """Mean and standard deviation (n, 2 c, h, w) in float16 of images (n, H, W, C) of bytes; then of their mirror images."""
    c, h, w = shape
    parts: list[Tensor] = [torch.empty(0, 2 * c, h, w)]
    for mirrored in (False, True) if flip else (False,):
        for first in range(0, len(pixels), batch_size):
            images = (
                torch.from_numpy(pixels[first : first + batch_size]).permute(0, 3, 1, 2).float()
                / 127.5
                - 1
            )
            parts.append(autoencoder.encode(images.flip(3) if mirrored else images))
            if not mirrored:
                on_done(min(first + batch_size, len(pixels)))
    return torch.cat(parts).half().numpy()

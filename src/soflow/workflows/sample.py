"""Draws samples from a run, into a tensor or a file.

Files are made in pieces. Several processes share the pieces, and a resumed call reuses them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from soflow import __version__
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import checksum
from soflow.data.shards import open_store
from soflow.data.store import Piece, Plan, make_store
from soflow.drawing import sample_many
from soflow.evaluation.features import column_names
from soflow.evaluation.pictures import to_uint8
from soflow.evaluation.record import GuidanceUsed
from soflow.system import processes
from soflow.system.fingerprints import fingerprint_of
from soflow.system.isolation import isolated
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, track
from soflow.workflows.load import Run
from soflow.workflows.sample_files import SampleProtocol, require_room, require_suitable, write
from soflow.workflows.sample_request import SampleRequest

#: Number of samples per piece of a file.
PIECE = 500


@isolated
def sample(run: Run, request: SampleRequest, progress: Progress = track) -> Tensor:
    """Draws the samples of a request.

    Args:
        run: The run to sample from.
        request: The number of samples, their classes, the sampler and further settings.
        progress: Shows the progress.

    Returns:
        Samples (num, ...) on the CPU: images (num, C, H, W) in [-1, 1]; vectors (num, D), signals
        (num, C, L) and other data in the units of the training data.

    Raises:
        InputError: If labels, conditions or guidance do not fit the model, or the sampler does not
            work with the objective.
        RunError: If memory runs out.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> request = soflow.SampleRequest.of(run, 10, labels=[3, 7], seed=1)
        >>> soflow.sample(run, request, progress=soflow.silent).shape
        torch.Size([10, 1, 8, 8])
    """
    run.config.require_sampler(request.sampler)
    with progress("sampling", request.num) as task:
        return draw_rows(run, request, range(request.num), task.update)


def draw_rows(
    run: Run, request: SampleRequest, rows: range, on_batch: Callable[[int], None]
) -> Tensor:
    """Draws the samples with the numbers in `rows`."""
    labels = None if request.labels is None else request.labels[rows.start : rows.stop]
    cond = None if request.cond is None else request.cond[rows.start : rows.stop]
    scale, interval, batch = None, None, request.batch_size
    if (guidance := request.guidance) is not None:
        own = guidance[rows.start : rows.stop] if guidance.ndim == 2 else guidance
        scale, interval = own[..., 0], guidance.reshape(-1, 3)[0, 1:]  # one interval for all
    with out_of_memory_explained(f"reduce the samples drawn at once, --batch (now {batch})"):
        return sample_many(
            run.model, len(rows), labels, request.sampler, request.nfe, request.seed,
            batch, run.device, on_batch, start=rows.start, cond=cond,
            guidance=scale, guidance_interval=interval, times=request.times,
        )  # fmt: skip


@isolated
def sample_to_file(
    run: Run, request: SampleRequest, file: str | Path, progress: Progress = track
) -> bool:
    """Draws the samples of a request into a file.

    The file does not depend on the number of processes. NPZ files and folders also record how the
    samples were drawn (the protocol). To resume after an interruption, call the function again.

    Args:
        run: The run to sample from.
        request: The number of samples, their classes, the sampler and further settings.
        file: FILE.png for one picture; FILE.npz for arrays in the format of ADM (guided-diffusion):
            arr_0 (num, ...) holds the samples, arr_1 (num,) the labels; FILE.csv for a table of
            vectors; or a folder for one PNG per image.
        progress: Shows the progress.

    Returns:
        True if the file is complete, False if other processes are still drawing samples.

    Raises:
        InputError: If the file cannot be written, the folder contains other numbered images, or
            the sampler does not work with the objective.
        RunError: If memory or disk space runs out.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> request = soflow.SampleRequest.of(run, 20, labels=[3, 7])
        >>> soflow.sample_to_file(run, request, "digits.npz", progress=soflow.silent)
        True
    """
    run.config.require_sampler(request.sampler)
    file, num = Path(file).expanduser(), request.num
    if request.labels is None:
        run.model.require_null()
    require_suitable(run, file)
    require_room(file, num)
    plan, index, count = plan_of(run, request), processes.index(), processes.count()
    name = f".{file.name}.{fingerprint_of(repr(plan))}"
    pieces, whole = (file.absolute().parent / f"{name}.{state}" for state in ("pieces", "whole"))

    def make(rows: range) -> Piece:
        def on_batch(done: int) -> None:  # assumes that the other processes are as fast
            task.update(min(num, rows.start + count * done))

        samples, labels = draw_rows(run, request, rows, on_batch), request.labels
        pictures = not column_names(samples.shape[1:], run.scaling)
        pixels = to_uint8(samples) if pictures else samples.numpy()
        return Piece(pixels, None if labels is None else labels[rows.start : rows.stop].tolist())

    if not whole.is_dir():
        with progress("sampling", num) as task:
            if not make_store(pieces, plan, make, index, count):
                return False
        try:
            pieces.rename(whole)
        except FileNotFoundError:
            return False  # another process has also finished, and writes the file
    elif index > 0:
        return False
    # Rows are memory-mapped files. Windows deletes them only when nothing refers to them.
    write(run, open_store(whole)[0], request.labels, file, protocol_of(run, request))
    shutil.rmtree(whole)
    return True


class SamplesPlan(Plan):
    """The settings that samples depend on. Pieces of different plans never mix."""

    kind: Literal["samples"] = "samples"
    weights: str
    decoder: tuple[str, float, float] | None
    labels: str | None
    sampler: tuple[str, int]
    seed: int
    cond: str | None = None
    guidance: str | None = None
    times: tuple[float, ...] | None = None


def plan_of(run: Run, request: SampleRequest) -> SamplesPlan:
    labels = request.labels
    return SamplesPlan(
        weights=run.checkpoint.checksum_of(run.weights),
        decoder=decoder_of(run),
        labels=None if labels is None else fingerprint_of(str(labels.tolist())),
        sampler=(request.sampler, request.nfe),
        seed=request.seed,
        cond=None if request.cond is None else checksum(request.cond),
        guidance=None if request.guidance is None else checksum(request.guidance),
        times=request.times,
        count=request.num,
        per_shard=PIECE,
    )


def protocol_of(run: Run, request: SampleRequest) -> SampleProtocol:
    return SampleProtocol(
        run=run.folder.path.resolve().name,
        checkpoint=run.checkpoint.path.name,
        weights=run.weights,
        sampler=request.sampler,
        nfe=request.nfe,
        times=request.times,
        seed=request.seed,
        labels=request.labels_from,
        guidance=GuidanceUsed.of(run.model, request.guidance),
        versions={"soflow": __version__, "torch": torch.__version__},
    )


def decoder_of(run: Run) -> tuple[str, float, float] | None:
    """Identifies the autoencoder that decodes latents: checksum of the weights, scale and shift."""
    if not isinstance(run.model.decode, Decoder):
        return None
    autoencoder, _ = run.model.decode.loaded
    return autoencoder.checksum(), autoencoder.encoder.scale, autoencoder.encoder.shift

"""Sampling a run, into a tensor or into a file.

Files are made in pieces, which several processes share and which an interrupted call reuses.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from soflow import __version__
from soflow.data.autoencoder import Decoder
from soflow.data.conditions import conditions_of
from soflow.data.dataset import checksum
from soflow.data.shards import open_store
from soflow.data.store import Piece, Plan, make_store
from soflow.drawing import LabelDraw, asked_guidance, draw_classes, sample_many
from soflow.errors import InputError, require_whole
from soflow.evaluation.features import column_names
from soflow.evaluation.pictures import to_uint8
from soflow.evaluation.record import GuidanceUsed
from soflow.guidance import AnyInterval, AnyScale
from soflow.sampling import Sampler, check_sampler
from soflow.symbols import as_labels
from soflow.system import processes
from soflow.system.fingerprints import fingerprint_of
from soflow.system.isolation import isolated
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, track
from soflow.workflows.labels import Classes, labels_in_turn
from soflow.workflows.load import Run
from soflow.workflows.sample_files import SampleProtocol, require_room, require_suitable, write

#: In place of classes: samples without a label.
NONE = "none"
#: Samples per piece of a file.
PIECE = 500


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """What to draw. Sample i depends on the seed, i, its label and its condition alone.

    Attributes:
        num: The number of samples.
        labels: Their classes, (num,); None for a model without classes, or for no condition.
        sampler: "renoise", "ode", "euler" or "heun".
        nfe: Network evaluations per sample.
        seed: The seed of the noise.
        batch_size: How many samples are drawn at once.
        labels_from: How the labels were chosen, for the protocol.
        cond: Their conditions, (num, ...); None for a model without conditions.
        guidance: The guidance scale and the interval in which it acts, (3,), or a row for each
            sample, (num, 3); None for what the model prefers.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> request = soflow.SampleRequest.of(run, 4, labels="3,7", nfe=2)
        >>> request.labels, request.sampler
        (tensor([3, 7, 3, 7]), 'ode')
    """

    num: int
    labels: Tensor | None
    sampler: Sampler
    nfe: int
    seed: int = 0
    batch_size: int = 500
    labels_from: str = "given"
    cond: Tensor | None = None
    guidance: Tensor | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler, self.nfe)
        require_whole(1, num=self.num, batch_size=self.batch_size)
        require_whole(0, seed=self.seed)
        object.__setattr__(self, "labels", as_labels(self.labels))  # a list or an array, too
        if self.labels is not None and self.labels.shape != (self.num,):
            raise InputError(f"labels have shape {list(self.labels.shape)}, not [{self.num}]")
        if self.guidance is not None and self.guidance.shape not in ((3,), (self.num, 3)):
            held = f"guidance holds {len(self.guidance)} scales for {self.num} samples"
            raise InputError(f"{held}: give one number, or one for each")

    @classmethod
    @isolated
    def of(
        cls,
        run: Run,
        num: int | None = None,
        labels: Classes | None = None,
        draw: LabelDraw = "balanced",
        sampler: str | None = None,
        nfe: int | None = None,
        seed: int = 0,
        batch_size: int = 500,
        cond: Any = None,
        guidance: AnyScale | None = None,
        guidance_interval: AnyInterval | None = None,
    ) -> Self:
        """A request in words that people use, completed by what suits the run.

        Args:
            run: The run to sample.
            num: The number of samples; by default one per condition, or 64.
            labels: Classes to draw in turn, by name or number: "cat,dog", "3,7", or a list, an
                array or a tensor of them, in which None and -1 mean no class; or "none", for
                samples without a label (unless a class has this name).
            draw: Without `labels`, "balanced" draws all classes in turn, "random" at random.
            sampler: By default the one that suits the run's objective.
            nfe: Network evaluations per sample, by default as few as suit the sampler.
            seed: The seed of noise and random labels.
            batch_size: How many samples are drawn at once.
            cond: Conditions to draw in turn, (n, ...), as training takes them.
            guidance: The guidance scale, or one for each sample, (num,), for a run whose scales
                were drawn in training; by default its setting objective.guidance.scale.
            guidance_interval: The start and the end of the times at which it acts; by default
                (0, 1).

        Raises:
            InputError: If a class or the sampler is unknown, the sampler cannot use `nfe`, the
                null label was never trained, conditions are missing or do not fit, or the run was
                not trained at such a scale.
        """
        if num is not None:
            require_whole(1, num=num)
        require_whole(0, seed=seed)
        given = conditions_in_turn(run, cond, num)
        if num is None:
            num = 64 if given is None else len(given)
        default, default_nfe = run.config.default_sampler
        if sampler is not None or nfe is not None:
            default, default_nfe = run.config.samplers[0], 2 if sampler == "heun" else 1
        nfe = default_nfe if nfe is None else nfe
        checked = check_sampler(sampler or default, nfe)
        names = run.class_names
        if labels is not None and draw == "random":
            raise InputError("labels are drawn in turn: leave out --labels, or --draw random")
        chosen = draw_classes(draw, num, len(names), seed)
        if isinstance(labels, str) and labels == NONE and NONE not in names:
            run.model.require_null()
            chosen = None
        elif labels is not None:
            chosen = labels_in_turn(labels, num, names)
        asked = labels if isinstance(labels, str | None) else "given"
        labels_from = asked or draw if names else "none"
        rows = asked_guidance(run.model, guidance, guidance_interval)
        return cls(num, chosen, checked, nfe, seed, batch_size, labels_from, given, rows)


def conditions_in_turn(run: Run, cond: Any, num: int | None) -> Tensor | None:
    """The conditions of `num` samples, (num, ...), by default one of each; None without any.

    Raises:
        InputError: If they are missing or do not fit the run.
    """
    shape = run.model.cond_shape
    if cond is None and shape:
        raise InputError(
            f"this run draws samples for conditions of shape {list(shape)}: give them by cond=, "
            "or by --cond FILE"
        )
    if cond is None:
        return None
    given = conditions_of(cond, shape, run.model.shape)
    return given if num is None else given[torch.arange(num) % len(given)]


@isolated
def sample(run: Run, request: SampleRequest, progress: Progress = track) -> Tensor:
    """Draws the samples of a request.

    Args:
        run: The run to sample.
        request: What to draw.
        progress: Shows how many samples are drawn.

    Returns:
        Samples (num, ...) on the CPU: images (num, C, H, W) in -1 to 1; vectors (num, D), signals
        (num, C, L) and others in the data's own units.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> request = soflow.SampleRequest.of(run, 10, labels=[3, 7], seed=1)
        >>> soflow.sample(run, request, progress=soflow.silent).shape
        torch.Size([10, 1, 8, 8])
    """
    with progress("sampling", request.num) as task:
        return draw_rows(run, request, range(request.num), task.update)


def draw_rows(
    run: Run, request: SampleRequest, rows: range, on_batch: Callable[[int], None]
) -> Tensor:
    """The samples with these numbers."""
    labels = None if request.labels is None else request.labels[rows.start : rows.stop]
    cond = None if request.cond is None else request.cond[rows.start : rows.stop]
    scale, interval, batch = None, None, request.batch_size
    if (guidance := request.guidance) is not None:
        own = guidance[rows.start : rows.stop] if guidance.ndim == 2 else guidance
        scale, interval = own[..., 0], guidance.reshape(-1, 3)[0, 1:]  # one interval for all
    with out_of_memory_explained(f"draw fewer samples at once, --batch (now {batch})"):
        return sample_many(
            run.model, len(rows), labels, request.sampler, request.nfe, request.seed,
            batch, run.device, on_batch, start=rows.start, cond=cond,
            guidance=scale, guidance_interval=interval,
        )  # fmt: skip


@isolated
def sample_to_file(
    run: Run, request: SampleRequest, file: str | Path, progress: Progress = track
) -> bool:
    """Draws the samples of a request into a file.

    The file is the same for any number of processes. Arrays and folders hold a `SampleProtocol`.

    Args:
        run: The run to sample.
        request: What to draw.
        file: FILE.png for one picture, FILE.npz for arrays in ADM's layout (arr_0 samples, arr_1
            labels), FILE.csv for a table of vectors, or a folder for one PNG per image.
        progress: Shows the progress.

    Returns:
        True once the file is there, False while other processes still draw their pieces.

    Raises:
        InputError: If the file cannot be written, or the folder holds other numbered images.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> request = soflow.SampleRequest.of(run, 20, labels=[3, 7])
        >>> soflow.sample_to_file(run, request, "digits.npz", progress=soflow.silent)
        True
    """
    file, num = Path(file).expanduser(), request.num
    if request.labels is None:
        run.model.require_null()
    require_suitable(run, file)
    require_room(file, num)
    plan, index, count = plan_of(run, request), processes.index(), processes.count()
    name = f".{file.name}.{fingerprint_of(repr(plan))}"
    pieces, whole = (file.absolute().parent / f"{name}.{state}" for state in ("pieces", "whole"))

    def make(rows: range) -> Piece:
        def on_batch(done: int) -> None:  # other processes are about as far
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
            return False  # another process saw the last piece at the same time and writes the file
    elif index > 0:
        return False
    # Rows are memory-mapped files, which Windows removes only when nothing refers to them.
    write(run, open_store(whole)[0], request.labels, file, protocol_of(run, request))
    shutil.rmtree(whole)
    return True


class SamplesPlan(Plan):
    """What pieces of samples depend on: those of another plan are never mixed in."""

    kind: Literal["samples"] = "samples"
    weights: str
    decoder: tuple[str, float, float] | None
    labels: str | None
    sampler: tuple[str, int]
    seed: int
    cond: str | None = None
    guidance: str | None = None


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
        seed=request.seed,
        labels=request.labels_from,
        guidance=GuidanceUsed.of(run.model, request.guidance),
        versions={"soflow": __version__, "torch": torch.__version__},
    )


def decoder_of(run: Run) -> tuple[str, float, float] | None:
    """The autoencoder that decodes latents: the checksum of its weights, its scale and shift."""
    if not isinstance(run.model.decode, Decoder):
        return None
    autoencoder, _ = run.model.decode.loaded
    return autoencoder.checksum(), autoencoder.encoder.scale, autoencoder.encoder.shift

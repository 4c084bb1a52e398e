"""SampleRequest: which samples to draw, how, and with which defaults of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from soflow.data.conditions import conditions_of
from soflow.drawing import LabelDraw, asked_guidance, draw_classes
from soflow.errors import InputError, require_whole
from soflow.guidance import AnyInterval, AnyScale
from soflow.sampling import Sampler, check_sampler, times_given
from soflow.symbols import as_labels
from soflow.system.isolation import isolated
from soflow.workflows.labels import Classes, labels_in_turn
from soflow.workflows.load import Run

#: The value of `labels` that draws samples without a label.
NONE = "none"


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """The settings for drawing samples.

    For a given model, sampler, `nfe` and `times`, sample i depends only on the seed, i, its label,
    its condition and its guidance.

    Attributes:
        num: The number of samples.
        labels: The class of each sample, (num,); None for a model without classes, or to draw
            without labels.
        sampler: "renoise", "ode", "euler" or "heun".
        nfe: The number of network evaluations per sample.
        seed: The seed of the noise.
        batch_size: The number of samples drawn at once.
        labels_from: How the labels were chosen, for the protocol.
        cond: The condition of each sample, (num, ...); None for a model without conditions.
        guidance: The guidance scale, and the start and end of its interval of t: (3,) for all
            samples, or (num, 3) with one scale per sample and the same interval for all; None for
            the defaults of the model.
        times: The times of `renoise` and `ode`, from 1 to 0; None for evenly spaced times.

    Raises:
        InputError: If a value is invalid, `labels` or `guidance` has the wrong shape, or the
            intervals of guidance differ.

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
    times: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler, self.nfe, self.times)
        require_whole(1, num=self.num, batch_size=self.batch_size)
        require_whole(0, seed=self.seed)
        object.__setattr__(self, "labels", as_labels(self.labels))  # accepts lists and arrays
        if self.labels is not None and self.labels.shape != (self.num,):
            raise InputError(
                f"labels has shape {list(self.labels.shape)}: it must be [{self.num}], one label "
                "per sample"
            )
        if self.guidance is not None and self.guidance.shape not in ((3,), (self.num, 3)):
            raise InputError(
                f"guidance has shape {list(self.guidance.shape)}: it must be [3] or [{self.num}, "
                "3]; SampleRequest.of accepts scales"
            )
        if self.guidance is not None and len(self.guidance.reshape(-1, 3)[:, 1:].unique(dim=0)) > 1:
            raise InputError(
                "guidance has several intervals: use the same start and end for all samples"
            )

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
        times: Sequence[Any] | None = None,
    ) -> Self:
        """Creates a request for a run, with defaults that suit the run.

        Args:
            run: The run to sample from.
            num: The number of samples. By default, one per condition, or 64 without conditions.
            labels: The classes of the samples, in turn, by name or number: "cat,dog", "3,7", or a
                list, an array or a tensor, in which None and -1 mean no class. "none" draws samples
                without a label, unless a class has this name.
            draw: Without `labels`: "balanced" draws all classes in turn, "random" draws each class
                at random.
            sampler: "renoise", "ode", "euler" or "heun". By default, the first of `run.samplers`.
            nfe: The number of network evaluations per sample. By default 1, or 2 for Heun's method.
                If neither `sampler` nor `nfe` is given, runs trained by flow matching use Heun's
                method with 64 evaluations.
            seed: The seed of the noise and the random labels.
            batch_size: The number of samples drawn at once.
            cond: The conditions of the samples, in turn, (n, ...), in the form used for training.
            guidance: The guidance scale, one number or one per sample, (num,). Requires a run
                trained with random guidance scales. By default, the run's setting
                objective.guidance.scale.
            guidance_interval: The interval (start, end) of t in which guidance acts; t = 0 is data,
                t = 1 is noise. By default (0, 1).
            times: The times of `renoise` and `ode`, from 1 (noise) to 0 (data), such as
                [1, 0.9, 0] for two evaluations. By default, evenly spaced.

        Returns:
            The request, for `soflow.sample` and `soflow.sample_to_file`.

        Raises:
            InputError: If a class or the sampler is unknown, the sampler does not support `nfe` or
                `times`, the null label was not trained, conditions are missing or do not fit, or
                the run was not trained with this guidance scale.
        """
        if num is not None:
            require_whole(1, num=num)
        require_whole(0, seed=seed)
        given = conditions_in_turn(run, cond, num)
        if num is None:
            num = 64 if given is None else len(given)
        default, default_nfe = run.config.default_sampler
        if sampler is not None or nfe is not None or times is not None:
            default, default_nfe = run.config.samplers[0], 2 if sampler == "heun" else 1
        jumps = None if times is None else times_given(times)
        nfe = (len(jumps) - 1 if jumps else default_nfe) if nfe is None else nfe
        checked = check_sampler(sampler or default, nfe, jumps)
        names = run.class_names
        if labels is not None and draw == "random":
            raise InputError("labels and draw=random cannot be combined: leave out one of them")
        chosen = draw_classes(draw, num, len(names), seed)
        if isinstance(labels, str) and labels == NONE and NONE not in names:
            run.model.require_null()
            chosen = None
        elif labels is not None:
            chosen = labels_in_turn(labels, num, names)
        asked = labels if isinstance(labels, str | None) else "given"
        labels_from = asked or draw if names else "none"
        rows = asked_guidance(run.model, guidance, guidance_interval)
        return cls(num, chosen, checked, nfe, seed, batch_size, labels_from, given, rows, jumps)


def conditions_in_turn(run: Run, cond: Any, num: int | None) -> Tensor | None:
    """The conditions of `num` samples, (num, ...); None for a run without conditions.

    The conditions repeat in turn. By default, each gives one sample.

    Raises:
        InputError: If conditions are missing or do not fit the run.
    """
    shape = run.model.cond_shape
    if cond is None and shape:
        raise InputError(
            f"this run needs conditions of shape {list(shape)}: pass them with cond= in Python, "
            "or with --cond FILE"
        )
    if cond is None:
        return None
    given = conditions_of(cond, shape, run.model.shape)
    return given if num is None else given[torch.arange(num) % len(given)]

"""The typed configuration: every key with its default, range and meaning.

`soflow recipes NAME` prints the descriptions. config/reading.py reads files and overrides.
"""

import os
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from soflow.config.checks import check_data, check_network, check_objective, check_training
from soflow.config.optimizer import Decay, OptimizerConfig, Share
from soflow.config.own import OwnNetwork, OwnObjective
from soflow.config.sections import ChosenFrom, ComponentSection, Section, key
from soflow.errors import InputError
from soflow.guidance import DrawnGuidance, draws_scales
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.sampling import HEUN_STEPS, Sampler

#: The data values that are scaled to -1 and 1.
Range = tuple[float, float]
#: A path in which ~ is the home folder.
HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
#: The type of `data.range`.
AskedRange = Literal["auto", "standardize"] | Range


class DataConfig(Section):
    source: str = key(
        "digits",
        "data source: auto (chosen by data.path), folder, huggingface, arrays, table, latents, "
        "digits, moons, checkerboard, eight_gaussians, or a registered source",
    )
    path: HomePath = key(
        "",
        "path of the data: an image folder or .zip, a .npz, .npy, .csv or parquet file, a latents "
        "folder, or the name of a dataset on the Hugging Face Hub",
    )
    subset: str = key("", "configuration of a Hugging Face dataset that has several of them")
    revision: str = key("", "branch, tag or commit of a dataset on the Hugging Face Hub")
    split: str = key("train", "split to train on", min_length=1)
    image_column: str = key(
        "", "column or array of the images; only needed if the dataset has several candidates"
    )
    label_column: str = key(
        "", "column or array of the class labels; only needed if there are several candidates"
    )
    cond_column: str = key(
        "cond", "array, or key of the dataset's items, with conditions; empty: no conditions"
    )
    columns: tuple[str, ...] = key(
        (), "columns of a table to train on; empty list: all numeric columns"
    )
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = key(
        (1, 8, 8),
        "shape of one sample: [C, H, W] for images and latents, [C, L] for signals, [D] for "
        "vectors; -1: take the size from the data",
        min_length=1,
    )
    cond_shape: tuple[PositiveInt, ...] = key(
        (), "shape of one condition; filled in from the data; empty list: no conditions"
    )
    size: PositiveInt | None = key(
        None, "shorthand for data.shape=[C, size, size]: images are resized and center-cropped"
    )
    range: AskedRange = key(
        "auto",
        "data values [low, high] that are scaled to [-1, 1]; standardize: scale to mean 0 and "
        "variance 1; auto: the usual range for images, standardize for vectors and signals",
    )
    num_classes: int = key(
        10, "number of classes; 0: ignore labels; -1: all classes of the dataset", ge=-1
    )
    balance: bool = key(False, "sample all classes equally often")
    flip: bool = key(False, "flip images horizontally with probability 1/2 in each epoch")
    random_crop: int = key(
        0,
        "load images this many pixels larger and crop them at a random position in each epoch; "
        "0: off",
        ge=0,
    )
    augment: Share = key(
        0.0, "probability of each transformation in EDM's augmentation pipe; 0: no augmentation"
    )
    max_unreadable: Share = key(
        0.01, "maximum fraction of unreadable images or rows; more of them stop the run"
    )

    @model_validator(mode="before")
    @classmethod
    def size_is_short_for_shape(cls, section: Any) -> Any:
        size = section.get("size") if isinstance(section, dict) else None
        if not isinstance(size, int) or size < 1:
            return section
        shape = section.get("shape", (3,))
        channels = shape[0] if isinstance(shape, list | tuple) and shape else 3
        return {**section, "shape": [channels, size, size], "size": None}

    @model_validator(mode="after")
    def values_make_sense(self) -> "DataConfig":
        """Rejects sizes of 0 and empty ranges."""
        if 0 in self.shape:
            raise ValueError(
                f"data.shape is {list(self.shape)}: all sizes must be at least 1, or -1 to take "
                "the size from the data"
            )
        if not isinstance(self.range, str) and self.range[0] >= self.range[1]:
            raise ValueError(
                f"data.range is {list(self.range)}: the first value must be less than the second"
            )
        return self


class NoisingConfig(Section):
    name: Literal["linear", "trig"] = key(
        "linear",
        "noising process x_t = alpha data + beta noise: linear (alpha = 1 - t, beta = t) or trig "
        "(cosine and sine of pi t / 2)",
    )
    parameterization: Literal["euler", "trig"] = key(
        "euler",
        "parameterization of the solution function f = a x + b F: euler (a = 1, b = s - t) or "
        "trig (cosine and sine of pi (s - t) / 2)",
    )


class EmaConfig(Section):
    decay: Decay = key(0.9999, "EMA decay per step")
    every: PositiveInt = key(1, "steps between two EMA updates; one update decays by decay^every")
    float64: bool = key(False, "store the EMA weights in float64")
    rampup: float = key(
        0.05,
        "maximum half-life of the EMA as a fraction of the steps so far, so that it adapts faster "
        "at the start; 0: no limit",
        ge=0,
    )


class TrainConfig(Section):
    steps: PositiveInt = key(
        400_000,
        "number of training steps K; schedules such as r and the learning rate depend on it",
    )
    batch_size: PositiveInt = key(256, "samples per optimizer step, over all processes")
    accumulate: PositiveInt = key(
        1, "gradient accumulation steps per optimizer step; more steps need less memory"
    )
    checkpoint_activations: bool = key(
        False,
        "activation checkpointing: recompute blocks in the backward pass, which saves memory and "
        "takes about a third more time",
    )
    seed: int = key(
        0, "seed of the initial weights, the data order and all random draws", ge=0, lt=2**63
    )
    log_every: PositiveInt = key(100, "steps between two log entries in metrics.jsonl")
    sample_every: int = key(5000, "steps between two sample grids; 0: only at the end", ge=0)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = key(
        (), "experiment trackers to log to: tensorboard, wandb, mlflow"
    )
    on_nonfinite: Literal["stop", "skip"] = key(
        "stop", "action on a non-finite loss or gradient: stop the run, or skip the update"
    )
    max_skipped: int = key(
        100, "maximum number of skipped updates per run; one more stops the run", ge=0
    )


class CheckpointConfig(Section):
    every: PositiveInt = key(5000, "steps between two checkpoints; the last step always writes one")
    keep_last: PositiveInt = key(2, "number of most recent checkpoints to keep")
    keep_every: int = key(
        0, "also keep the checkpoints at multiples of this number of steps; 0: none", ge=0
    )
    on_failure: Literal["stop", "continue"] = key(
        "stop",
        "action if a checkpoint cannot be written, for example on a full disk: stop the run, or "
        "continue without the checkpoint",
    )


class EvaluateConfig(Section):
    nfe: tuple[PositiveInt, ...] = key(
        (1, 2, 4),
        "numbers of network evaluations per sample (NFE); each gives one row of the results",
        min_length=1,
    )
    num: int = key(2000, "number of samples drawn for each row of the results", ge=2)
    features: str = key(
        "digits",
        "feature extractor for distances such as FID: inception (standard FID), digits or "
        "classifier (both trained on the data), coordinates, or a TorchScript file",
    )
    every: int = key(
        0,
        "steps between two small evaluations during training, which select the best checkpoint; "
        "0: none",
        ge=0,
    )
    num_while_training: int = key(
        1000, "number of samples drawn in each small evaluation during training", ge=2
    )


class Config(Section):
    """The settings of a training run.

    `soflow recipes NAME` prints every key with its meaning.

    Attributes:
        description: A short description of the recipe.
        init_from: A weights file or a run to start from; `init_time` is its direction of time.
        data: The data source, and the shape and classes of the data.
        network: The name of the network and its settings.
        noising: The noising process and the parameterization.
        objective: The name of the objective and its settings.
        optimizer: The optimizer, the learning rate and its schedule.
        ema: The exponential moving average (EMA) of the weights.
        train: Steps, batch size and logging.
        checkpoint: When checkpoints are written and which ones are kept.
        evaluate: Evaluations at the end of and during training.
        precision: The number formats of the network passes in training.
        compile: Whether the blocks of the network are compiled.
        parallel: How several processes share the training: `ddp` or `fsdp`.

    Example:
        >>> import soflow
        >>> config = soflow.read_recipe("digits")
        >>> isinstance(config, soflow.Config), config.network.name, config.data.shape
        (True, 'dit', (1, 8, 8))
    """

    description: str = key("", "short description of the recipe")
    init_from: HomePath = key(
        "", "initial weights: a weights file of a DiT or SiT, or a run with the same network"
    )
    init_time: Literal["same", "reversed"] = key(
        "same",
        "direction of time in init_from: same (data at t = 0), or reversed (noise at t = 0, as in "
        "SiT)",
    )
    data: DataConfig = DataConfig()
    network: Annotated[Any, ChosenFrom(NETWORKS, "dit", OwnNetwork)] = Field({"name": "dit"})
    noising: NoisingConfig = NoisingConfig()
    objective: Annotated[Any, ChosenFrom(OBJECTIVES, "soflow", OwnObjective)] = Field(
        {"name": "soflow"}
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    precision: Literal["auto", "fp32", "tf32", "bf16", "bf16-tf32"] = key(
        "auto",
        "precision of training: fp32, tf32 (on a GPU), bf16 (mixed precision, with the two passes "
        "of the consistency loss in fp32), or bf16-tf32 (with these passes in tf32); auto: "
        "bf16-tf32 on a GPU, bf16 on a CPU where it is faster, otherwise fp32",
    )
    compile: bool | Literal["auto"] = key(
        "auto",
        "compile the blocks of the network, which makes the first step slower and all others "
        "faster; auto: on for long runs on a GPU",
    )
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp",
        "data-parallel training with several processes: ddp (each process holds all weights) or "
        "fsdp (each process holds a shard, for networks that do not fit in memory)",
    )

    @property
    def guidance_scale(self) -> float:
        """The guidance scale omega; 1 without guidance."""
        guidance = getattr(self.objective, "guidance", None)
        return self.of_objective("guidance_scale", 1.0) if guidance is None else guidance.scale

    @property
    def drawn_guidance(self) -> DrawnGuidance | None:
        """The guidance, if its scales are drawn and are an input of the network; otherwise None."""
        guidance = getattr(self.objective, "guidance", None)
        if isinstance(guidance, ComponentSection):
            guidance = guidance.build()
        return guidance if draws_scales(guidance) else None

    def of_objective(self, name: str, default: Any = None) -> Any:
        """A setting or a class attribute of the objective."""
        of_class = getattr(self.objective.component, name, default)
        return getattr(self.objective, name, of_class)

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that work with the objective. The first one is the default."""
        return cast(tuple[Sampler, ...], self.of_objective("samplers"))

    def require_sampler(self, name: str) -> None:
        """Raises InputError unless a sampler works with the objective.

        `euler` and `heun` integrate the same velocity, so both work if one of them does.
        """
        known = [*self.samplers]
        if {"euler", "heun"} & set(known):
            known += [one for one in ("heun", "euler") if one not in known]
        if name not in known:
            objective = getattr(self.objective, "kind", self.objective.name)
            raise InputError(
                f"the sampler '{name}' does not work with the objective {objective}: "
                f"choose {' or '.join(known)}"
            )

    @property
    def default_sampler(self) -> tuple[Sampler, int]:
        """The default sampler and its number of network evaluations.

        One jump, or `HEUN_STEPS` Heun steps if the objective learns no jumps.
        """
        first = self.samplers[0]
        return ("heun", 2 * HEUN_STEPS) if first in ("euler", "heun") else (first, 1)

    @model_validator(mode="after")
    def parts_fit_together(self) -> "Config":
        """Rejects combinations that would fail only later, during a step."""
        check_network(self)
        check_data(self)
        check_objective(self)
        check_training(self)
        return self

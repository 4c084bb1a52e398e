"""The typed configuration: every key, its default, its range and its meaning.

`soflow recipes NAME` prints the descriptions below. Reading files and overrides: config/reading.py.
"""

import os
from typing import Annotated, Any, Literal, cast

from pydantic import Field, PositiveInt, field_validator, model_validator

from soflow.config.optimizer import Decay, OptimizerConfig, Share
from soflow.config.own import OwnNetwork, OwnObjective
from soflow.config.sections import ChosenFrom, ComponentSection, Section, key
from soflow.guidance import DrawnGuidance, draws_scales
from soflow.networks import NETWORKS
from soflow.networks.registry import fits, takes, what_fits
from soflow.objectives import OBJECTIVES
from soflow.sampling import HEUN_STEPS, Sampler

#: The values that become -1 and 1.
Range = tuple[float, float]
#: How data.range is written.
AskedRange = Literal["auto", "standardize"] | Range


class DataConfig(Section):
    source: str = key(
        "digits",
        "auto (by data.path), folder, huggingface, arrays, table, latents, digits, moons, "
        "checkerboard, eight_gaussians, or a source of your own",
    )
    path: str = key(
        "", "a folder or .zip of images, .npz, .npy, .csv, parquet, a Hub name, latents"
    )
    subset: str = key("", "the configuration of a Hugging Face data set that has several")
    revision: str = key("", "a branch, tag or commit of a data set on the Hub")
    split: str = key("train", "which split to train on", min_length=1)
    image_column: str = key("", "column or array of images, if several may be")
    label_column: str = key("", "column or array of classes, if several may be")
    cond_column: str = key("cond", "array, or key of items, that holds conditions; empty: none")
    columns: tuple[str, ...] = key((), "columns of a table to use; none named: all numeric ones")
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = key(
        (1, 8, 8),
        "one sample's shape: [C, H, W] for images and latents, [C, L] for signals, [D] for "
        "vectors; -1: as the data have it",
        min_length=1,
    )
    cond_shape: tuple[PositiveInt, ...] = key(
        (), "shape of what samples are conditioned on besides classes; set by the data"
    )
    size: PositiveInt | None = key(None, "short for the shape [C, size, size]; crops images")
    range: AskedRange = key(
        "auto",
        "[low, high]: the values that become -1 and 1; standardize: mean 0, variance 1; auto: the "
        "usual range of images, standardized vectors and signals",
    )
    num_classes: int = key(10, "classes to train with; 0 ignores labels; -1: all there are", ge=-1)
    balance: bool = key(False, "draw every class equally often")
    flip: bool = key(False, "mirror each image with probability 1/2 at every visit")
    random_crop: int = key(
        0, "decode images this many pixels larger and crop a random place at every visit", ge=0
    )
    augment: Share = key(0.0, "probability of each change of EDM's augmentation pipe; 0: off")
    max_unreadable: Share = key(0.01, "fraction of images or rows that may be unreadable")

    @model_validator(mode="before")
    @classmethod
    def size_is_short_for_shape(cls, section: Any) -> Any:
        size = section.get("size") if isinstance(section, dict) else None
        if not isinstance(size, int) or size < 1:
            return section
        shape = section.get("shape", (3,))
        channels = shape[0] if isinstance(shape, list | tuple) and shape else 3
        return {**section, "shape": [channels, size, size], "size": None}

    @field_validator("path")
    @classmethod
    def home_is_expanded(cls, path: str) -> str:
        """Replaces ~ by the home folder."""
        return os.path.expanduser(path)

    @model_validator(mode="after")
    def values_make_sense(self) -> "DataConfig":
        """Rejects sizes of 0 and empty ranges."""
        if 0 in self.shape:
            raise ValueError(f"data.shape is {list(self.shape)}: sizes are 1 or more, -1 is open")
        if not isinstance(self.range, str) and self.range[0] >= self.range[1]:
            raise ValueError(f"data.range is {list(self.range)}: the first value must be smaller")
        return self


class NoisingConfig(Section):
    name: Literal["linear", "trig"] = key("linear", "linear or trig")
    parameterization: Literal["euler", "trig"] = key("euler", "of the solution map: euler or trig")


class EmaConfig(Section):
    decay: Decay = key(0.9999, "of the average of the weights, per step")
    every: PositiveInt = key(1, "steps between two updates, each by decay^every")
    float64: bool = key(False, "keep the average in float64")
    rampup: float = key(
        0.05,
        "start-up: the half-life of the average is at most this share of the steps so far; 0: off",
        ge=0,
    )


class TrainConfig(Section):
    steps: PositiveInt = key(400_000, "number of steps K; r(k, K) depends on it")
    batch_size: PositiveInt = key(256, "samples per step, over all processes")
    accumulate: PositiveInt = key(1, "microbatches of a step's batch, in turn, to save memory")
    checkpoint_activations: bool = key(
        False, "compute blocks again in the backward pass: less memory for a third more time"
    )
    seed: int = key(0, "of weights, data order and draws", ge=0, lt=2**63)
    log_every: PositiveInt = key(100, "steps between two lines of metrics.jsonl")
    sample_every: int = key(5000, "steps between two sample grids; 0: only at the end", ge=0)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = key(
        (), "also log to these: tensorboard, wandb, mlflow"
    )
    on_nonfinite: Literal["stop", "skip"] = key(
        "stop", "if a loss or gradient is not finite: stop, or skip the update"
    )
    max_skipped: int = key(100, "updates that a run may skip; one more stops it", ge=0)


class CheckpointConfig(Section):
    every: PositiveInt = key(5000, "steps between two checkpoints; the last step has one")
    keep_last: PositiveInt = key(2, "how many to keep")
    keep_every: int = key(0, "also keep those of every so many steps; 0: none", ge=0)
    on_failure: Literal["stop", "continue"] = key(
        "stop", "if one cannot be written, as on a full disk: stop, or continue without it"
    )


class EvaluateConfig(Section):
    nfe: tuple[PositiveInt, ...] = key(
        (1, 2, 4), "network evaluations per sample, one row of the table each", min_length=1
    )
    num: int = key(2000, "samples to draw for each row", ge=2)
    features: str = key(
        "digits",
        "inception (FID's), digits or classifier (trained on the data), coordinates, "
        "or a TorchScript file",
    )
    every: int = key(
        0, "steps between two small evaluations while training, which keep the best; 0: none", ge=0
    )
    num_while_training: int = key(1000, "samples of each small evaluation", ge=2)


class Config(Section):
    """The settings of one experiment.

    `soflow recipes NAME` prints every key with its meaning.

    Attributes:
        data: Where data come from, their shape and classes.
        network: The network, by name, and its settings.
        noising: The noising process and the parameterization.
        objective: The objective, by name, and its settings.
        optimizer: The optimizer, the learning rate and its schedule.
        ema: The average of the weights.
        train: The steps, the batch, and what is logged.
        checkpoint: When checkpoints are written, and which are kept.
        evaluate: What evaluations measure.

    Example:
        >>> import soflow
        >>> config = soflow.read_recipe("digits")
        >>> isinstance(config, soflow.Config), config.network.name, config.data.shape
        (True, 'dit', (1, 8, 8))
    """

    description: str = key("", "what this recipe is for")
    init_from: str = key("", "initial weights: a file of a DiT or SiT, or a run of this network")
    init_time: Literal["same", "reversed"] = key(
        "same", "of that file: reversed if t = 0 is noise and t = 1 is data, as in SiT"
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
        "of the passes: fp32 (exact), tf32 on a GPU, bf16 with the consistency pair in fp32, "
        "bf16-tf32 with it in tf32; auto: bf16-tf32 on a GPU, bf16 on a CPU that is faster in it",
    )
    compile: bool | Literal["auto"] = key(
        "auto",
        "compile the network's blocks: faster after a slow first step; auto: on a GPU, in long "
        "runs",
    )
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp",
        "of several processes: ddp, each holds the network; fsdp, each holds a shard, "
        "for networks that do not fit",
    )

    @field_validator("init_from")
    @classmethod
    def home_is_expanded(cls, path: str) -> str:
        """Replaces ~ by the home folder."""
        return os.path.expanduser(path)

    @property
    def guidance_scale(self) -> float:
        """The scale omega of guidance; 1 if nothing is guided."""
        guidance = getattr(self.objective, "guidance", None)
        return self.of_objective("guidance_scale", 1.0) if guidance is None else guidance.scale

    @property
    def drawn_guidance(self) -> DrawnGuidance | None:
        """The guidance whose scales are drawn, which makes them an input of the network."""
        guidance = getattr(self.objective, "guidance", None)
        if isinstance(guidance, ComponentSection):
            guidance = guidance.build()
        return guidance if draws_scales(guidance) else None

    def of_objective(self, name: str, default: Any = None) -> Any:
        """What the objective says of itself: a class attribute, or a setting of that name."""
        of_class = getattr(self.objective.component, name, default)
        return getattr(self.objective, name, of_class)

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that suit what the objective learns, its own first."""
        return cast(tuple[Sampler, ...], self.of_objective("samplers"))

    @property
    def default_sampler(self) -> tuple[Sampler, int]:
        """A sampler and its number of network evaluations.

        One jump; or the Heun steps of a yardstick if the objective learns no jumps.
        """
        first = self.samplers[0]
        return ("heun", 2 * HEUN_STEPS) if first in ("euler", "heun") else (first, 1)

    @model_validator(mode="after")
    def parts_fit_together(self) -> "Config":
        """Rejects combinations that could only fail later, in the middle of a step."""
        network = self.network.component
        data, chosen = self.data, f"network.name={self.network.name}"
        images = len(data.shape) == 3
        if not fits(network, data.shape):
            shape = f"data.shape={list(data.shape)}"
            raise ValueError(f"{chosen} does not fit {shape}: use {what_fits()}")
        if not getattr(network, "takes_labels", True) and data.num_classes:
            raise ValueError(f"{chosen} takes no labels: set data.num_classes=0")
        if data.cond_shape and not takes(network, "cond"):
            raise ValueError(
                f"{chosen} takes no conditions, which the data have: choose another network, or "
                "set data.cond_column= to train without them"
            )
        if data.augment and not images:
            raise ValueError(
                f"data.augment changes images [C, H, W], not {list(data.shape)}: set 0"
            )
        if data.augment and not takes(network, "augment"):
            raise ValueError(f"data.augment does not work with {chosen}: set network.name=unet")
        if data.cond_shape and data.random_crop:
            raise ValueError(
                "data.random_crop crops samples apart from their conditions: set it to 0, or "
                "data.cond_column= to train without conditions"
            )
        if data.random_crop and not images:
            raise ValueError("data.random_crop crops images: set it to 0")
        if data.balance and not data.num_classes:
            raise ValueError("data.balance needs classes: set data.num_classes, or balance=false")
        if data.flip and (not images or data.source == "latents" or data.augment):
            raise ValueError(
                "data.flip mirrors images: signals and vectors have no mirror image, soflow encode "
                "--flip mirrors latents, and data.augment mirrors already: set data.flip=false"
            )
        if self.train.checkpoint_activations and self.of_objective("forward_derivative"):
            raise ValueError(
                f"train.checkpoint_activations does not work with the Jacobian-vector products of "
                f"objective.name={self.objective.name}: set it to false"
            )
        if self.init_time == "reversed" and not self.init_from:
            raise ValueError("init_time=reversed says how to read init_from: set that, too")
        needed = self.of_objective("parameterization", self.noising.parameterization)
        if self.noising.parameterization != needed:
            chosen = f"objective.name={self.objective.name}"
            raise ValueError(f"{chosen} needs noising.parameterization={needed}: set that, too")
        if self.guidance_scale > 1 and not data.num_classes:
            raise ValueError(
                "objective.guidance.scale above 1 needs labels: "
                "set data.num_classes, or the scale to 1"
            )
        if self.drawn_guidance and not data.num_classes:
            raise ValueError(
                "objective.guidance.max_scale needs labels: set data.num_classes, or max_scale=null"
            )
        if self.drawn_guidance and not takes(network, "guidance"):
            raise ValueError(
                f"{chosen} takes no guidance scale: choose another network, or set "
                "objective.guidance.max_scale=null to train with one scale"
            )
        batch, count = self.train.batch_size, self.train.accumulate
        if batch % count:
            raise ValueError(f"train.batch_size={batch} is no multiple of train.accumulate={count}")
        return self

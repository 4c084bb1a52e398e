"""The typed configuration: every key, its default, its range and its meaning.

`soflow recipes NAME` prints the descriptions below. Reading files and overrides: config/reading.py.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from soflow.config.sections import ChosenFrom, Section
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.sampling import HEUN_STEPS, Sampler

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(Section):
    source: str = Field(
        "digits",
        description="digits, moons, checkerboard, eight_gaussians, folder, huggingface, arrays, "
        "latents, or a source of your own",
    )
    path: str = Field("", description="a folder of images, a Hub name, parquet, .npz, or latents")
    split: str = Field("train", min_length=1, description="which split to train on")
    image_column: str = Field("", description="column or array of images, where it is not clear")
    label_column: str = Field("", description="column or array of classes, where it is not clear")
    shape: tuple[PositiveInt, ...] = Field(
        (1, 8, 8),
        description="one sample's shape: [C, H, W] for images and latents, [D] for vectors",
    )
    size: PositiveInt | None = Field(
        None, description="short for the shape [C, size, size]; images are cropped to it"
    )
    num_classes: int = Field(
        10, ge=-1, description="classes to train with; 0 ignores labels; -1: as many as there are"
    )
    flip: bool = Field(False, description="mirror each image with probability 1/2 at every visit")
    augment: Share = Field(
        0.0, description="probability of each change of EDM's augmentation pipe; 0 turns it off"
    )

    @model_validator(mode="before")
    @classmethod
    def size_is_short_for_shape(cls, section: Any) -> Any:
        if (
            not isinstance(section, dict)
            or not isinstance(section.get("size"), int)
            or section["size"] < 1
        ):
            return section
        shape = section.get("shape", (3,))
        channels = shape[0] if isinstance(shape, list | tuple) and shape else 3
        return {**section, "shape": [channels, section["size"], section["size"]], "size": None}


class NoisingConfig(Section):
    name: Literal["linear", "trig"] = Field("linear", description="linear or trig")
    parameterization: Literal["euler", "trig"] = Field(
        "euler", description="of the solution map: euler or trig"
    )


class OptimizerConfig(Section):
    name: Literal["adamw", "radam"] = Field("adamw", description="adamw or radam")
    lr: PositiveFloat = Field(1e-4, description="learning rate, constant after the warm-up")
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="decay of the two moments")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")


class EmaConfig(Section):
    decay: Decay = Field(0.9999, description="of the average of the weights, per step")
    every: PositiveInt = Field(1, description="steps between two updates, each by decay^every")
    float64: bool = Field(False, description="keep the average in float64")


class TrainConfig(Section):
    steps: PositiveInt = Field(400_000, description="number of steps K; r(k, K) depends on it")
    batch_size: PositiveInt = Field(256, description="samples per step, over all processes")
    accumulate: PositiveInt = Field(
        1, description="microbatches of a step's batch, one after another to save memory"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order and draws")
    log_every: PositiveInt = Field(100, description="steps between two lines of metrics.jsonl")
    sample_every: int = Field(
        5000, ge=0, description="steps between two sample grids; 0: only at the end"
    )
    trackers: tuple[Literal["tensorboard"], ...] = Field(
        (), description="also log to these, e.g. [tensorboard]"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="if a loss or gradient is not finite: stop, or skip the update"
    )
    max_skipped: int = Field(
        100, ge=0, description="updates that a run may skip; one more stops it"
    )


class CheckpointConfig(Section):
    every: PositiveInt = Field(
        5000, description="steps between two checkpoints; one is always written at the end"
    )
    keep_last: PositiveInt = Field(2, description="how many to keep")
    keep_every: int = Field(0, ge=0, description="also keep those of every so many steps; 0: none")
    on_failure: Literal["stop", "continue"] = Field(
        "stop",
        description="if one cannot be written, as on a full disk: stop, or continue without it",
    )


class EvaluateConfig(Section):
    nfe: tuple[PositiveInt, ...] = Field(
        (1, 2, 4),
        min_length=1,
        description="network evaluations per sample, one row of the table each",
    )
    num: int = Field(2000, ge=2, description="samples to draw for each row")
    features: str = Field(
        "digits",
        description="inception (FID's), digits or classifier (trained on the data), coordinates, "
        "or a TorchScript file",
    )
    every: int = Field(
        0,
        ge=0,
        description="steps between two small evaluations while training, which keep the best; "
        "0: none",
    )
    num_while_training: int = Field(1000, ge=2, description="samples of each small evaluation")


class Config(Section):
    """One experiment, complete: with the code's version it says how to repeat the run."""

    description: str = Field("", description="what this recipe is for")
    init_from: str = Field(
        "", description="weights to begin with: a file of a DiT or SiT, or a run of this network"
    )
    init_time: Literal["same", "reversed"] = Field(
        "same", description="of that file: reversed if t = 0 is noise and t = 1 is data, as in SiT"
    )
    data: DataConfig = DataConfig()
    network: Annotated[Any, ChosenFrom(NETWORKS, "dit")] = Field({"name": "dit"})
    noising: NoisingConfig = NoisingConfig()
    objective: Annotated[Any, ChosenFrom(OBJECTIVES, "soflow")] = Field({"name": "soflow"})
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    precision: Literal["fp32", "tf32", "bf16", "bf16-tf32"] = Field(
        "fp32",
        description="of the passes: fp32, tf32 on a GPU, bf16 with the consistency pair in fp32, "
        "bf16-tf32 with it in tf32",
    )
    compile: bool = Field(
        False, description="compile the network's blocks: a slow first step, faster ones after it"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes: ddp, each holds the network; fsdp, each holds a shard, "
        "for networks that do not fit",
    )

    @property
    def guidance_scale(self) -> float:
        """omega; 1 if nothing is guided, and for an objective without guidance."""
        return getattr(getattr(self.objective, "guidance", None), "scale", 1.0)

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that suit what the objective learns, its own first."""
        samplers: Any = OBJECTIVES[self.objective.name].samplers
        return samplers

    @property
    def default_sampler(self) -> tuple[Sampler, int]:
        """A sampler and its number of network evaluations.

        One jump; or the Heun steps of a yardstick if the objective learns no jumps.
        """
        first = self.samplers[0]
        return ("heun", 2 * HEUN_STEPS) if first == "euler" else (first, 1)

    @model_validator(mode="after")
    def parts_fit_together(self) -> "Config":
        """Rejects combinations that could only fail later, in the middle of a step."""
        network, objective = NETWORKS[self.network.name], OBJECTIVES[self.objective.name]
        vectors = len(self.data.shape) == 1
        if getattr(network, "dimensions", len(self.data.shape)) != len(self.data.shape):
            fitting = "mlp for vectors" if vectors else "dit or unet for images"
            raise ValueError(
                f"network.name={self.network.name} does not fit "
                f"data.shape={list(self.data.shape)}: use {fitting}"
            )
        if not getattr(network, "takes_labels", True) and self.data.num_classes:
            raise ValueError(
                f"network.name={self.network.name} takes no labels: set data.num_classes=0"
            )
        if self.data.augment and not getattr(network, "takes_augment", False):
            raise ValueError(
                "data.augment needs a network that takes augmentation labels: set network.name=unet"
            )
        if self.data.flip and (vectors or self.data.source == "latents" or self.data.augment):
            raise ValueError(
                "data.flip mirrors images: vectors have no mirror image, soflow encode --flip "
                "mirrors latents, and data.augment mirrors already: set data.flip=false"
            )
        if self.init_time == "reversed" and not self.init_from:
            raise ValueError("init_time=reversed says how to read init_from: set that, too")
        needed = getattr(objective, "parameterization", self.noising.parameterization)
        if self.noising.parameterization != needed:
            raise ValueError(
                f"objective.name={self.objective.name} learns mean velocities: "
                f"set noising.parameterization={needed}"
            )
        if self.guidance_scale > 1 and not self.data.num_classes:
            raise ValueError(
                "objective.guidance.scale above 1 needs labels: "
                "set data.num_classes, or the scale to 1"
            )
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} cannot be split into train.accumulate="
                f"{self.train.accumulate} equal microbatches"
            )
        return self

"""The typed configuration: every key, its default, its range and its meaning.

`soflow recipes NAME` prints the descriptions below. Reading files and overrides: config/reading.py.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    source: str = Field(
        "digits", description="digits, moons, checkerboard, eight_gaussians, folder, huggingface, arrays or latents"
    )
    path: str = Field("", description="a folder of images, a Hub name, parquet, .npz, or what soflow encode made")
    split: str = Field("train", min_length=1, description="which split to train on")
    image_column: str = Field("", description="column or array of images, where it is not clear")
    label_column: str = Field("", description="column or array of classes, where it is not clear")
    shape: tuple[PositiveInt, ...] = Field(
        (1, 8, 8), description="one sample's shape: [C, H, W] for images and latents, [D] for vectors"
    )
    size: PositiveInt | None = Field(None, description="short for the shape [C, size, size], images being cropped to it")
    num_classes: int = Field(10, ge=-1, description="classes to train with; 0 ignores labels; -1: as many as there are")
    flip: bool = Field(False, description="mirror each image by a coin toss at every visit")
    augment: Share = Field(0.0, description="probability of each change of EDM's augmentation pipe; 0 turns it off")

    @model_validator(mode="before")
    @classmethod
    def size_is_short_for_shape(cls, section: Any) -> Any:
        if not isinstance(section, dict) or not isinstance(section.get("size"), int) or section["size"] < 1:
            return section
        shape = section.get("shape", (3,))
        channels = shape[0] if isinstance(shape, list | tuple) and shape else 3
        return {**section, "shape": [channels, section["size"], section["size"]], "size": None}


class DiTConfig(Section):
    name: Literal["dit"]
    patch: PositiveInt = Field(2, description="side of a patch, in pixels")
    width: PositiveInt = Field(128, description="channels of a token")
    depth: PositiveInt = Field(6, description="number of blocks")
    heads: PositiveInt = Field(4, description="attention heads")
    mlp_ratio: float = Field(4.0, ge=0.1, description="width of a block's MLP, in units of width")


class UNetConfig(Section):
    name: Literal["unet"]
    model_channels: PositiveInt = Field(128, description="base width")
    channel_mult: tuple[PositiveInt, ...] = Field((2, 2, 2), description="width of each level, in units of model_channels")
    blocks: PositiveInt = Field(4, description="residual blocks a level")
    attention: tuple[PositiveInt, ...] = Field((16,), description="resolutions with attention")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout inside residual blocks")
    channel_mult_noise: PositiveInt = Field(2, description="frequencies of t and of t - s, in units of model_channels")
    channel_mult_emb: PositiveInt = Field(4, description="width of the embedding, in units of model_channels")


class MLPConfig(Section):
    name: Literal["mlp"]
    width: PositiveInt = Field(128, description="width of the residual stream")
    depth: PositiveInt = Field(4, description="number of residual blocks")


NetworkConfig = Annotated[DiTConfig | UNetConfig | MLPConfig, Field(discriminator="name")]


class PathConfig(Section):
    name: Literal["linear", "trig"] = Field("linear", description="noising path: linear or trig")
    parameterization: Literal["euler", "trig"] = Field("euler", description="of the solution map: euler or trig")


class LogitNormalConfig(Section):
    mean: float = Field(description="mean of logit(time)")
    std: PositiveFloat = Field(description="standard deviation of logit(time)")


class TimesConfig(Section):
    flow_matching: LogitNormalConfig = Field(LogitNormalConfig(mean=-0.2, std=1.0), description="t of flow matching")
    t: LogitNormalConfig = Field(LogitNormalConfig(mean=0.2, std=0.8), description="where a jump starts")
    s: LogitNormalConfig = Field(LogitNormalConfig(mean=-1.0, std=0.8), description="where a jump ends")


class MiddleConfig(Section):
    schedule: Literal["constant", "linear", "cosine", "exponential"] = Field("exponential", description="of r(k, K)")
    init: float = Field(0.1, gt=0, le=1, description="r at the first step")
    end: float = Field(0.002, gt=0, le=1, description="r at the last step")


class GuidanceConfig(Section):
    scale: float = Field(1.0, ge=1, description="omega; 1 trains without guidance and drops no label")
    mix: Share = Field(0.25, description="weight of the guided velocity against the network's own")
    label_dropout: Share = Field(0.1, description="share of samples trained without their label")
    decay_time: Share = Field(0.8, description="above this t guidance fades towards noise; 1: never")


class UndecayedGuidanceConfig(GuidanceConfig):
    mix: Share = Field(1.0, description="weight of the guided velocity against the network's own, 1 - kappa")
    decay_time: float = Field(1.0, ge=1, le=1, description="MeanFlow's guidance does not fade")


#: How samples are drawn from what a method learns, its own way first: see sampling.py.
Samplers = tuple[Literal["renoise", "ode", "euler", "heun"], ...]


class MethodConfig(Section):
    samplers: ClassVar[Samplers]
    whole_network: ClassVar[bool] = False  # it does more with the network than call it, and so needs all of it at once


class SoFlowConfig(MethodConfig):
    samplers: ClassVar[Samplers] = ("renoise", "ode", "heun")
    name: Literal["soflow"] = Field("soflow", description="soflow, flow_matching, mean_flow, shortcut or consistency")
    lambda_: Share = Field(0.75, description="share of the batch that matches the flow; the rest is made consistent")
    p: float = Field(1.0, ge=0, description="power of the adaptive weight; 0 is the plain square")
    eps: PositiveFloat = Field(0.01, description="floor of the adaptive weight")
    times: TimesConfig = Field(TimesConfig(), description="densities of the times, logit-normal")
    middle: MiddleConfig = Field(MiddleConfig(), description="the middle time l = t + (s - t) r")
    guidance: GuidanceConfig = Field(GuidanceConfig(), description="classifier-free guidance inside training")


class FlowMatchingConfig(MethodConfig):
    samplers: ClassVar[Samplers] = ("euler", "heun")  # a velocity, no jumps
    name: Literal["flow_matching"]
    p: float = Field(0.0, ge=0, description="power of the adaptive weight; 0 is the plain square")
    eps: PositiveFloat = Field(0.01, description="floor of the adaptive weight")
    times: LogitNormalConfig = Field(LogitNormalConfig(mean=-0.2, std=1.0), description="density of t")
    guidance: GuidanceConfig = Field(GuidanceConfig(), description="classifier-free guidance inside training")


class MeanFlowConfig(MethodConfig):
    samplers: ClassVar[Samplers] = ("ode", "renoise", "heun")
    whole_network: ClassVar[bool] = True  # whose derivative it takes
    name: Literal["mean_flow"]
    velocity_share: Share = Field(0.75, description="share of the batch with s = t")
    derivative: Literal["all", "jumps"] = Field(
        "all", description="of all samples, as published, or where s < t, which gives the same at less cost"
    )
    p: float = Field(1.0, ge=0, description="power of the adaptive weight; 0 is the plain square")
    eps: PositiveFloat = Field(0.01, description="floor of the adaptive weight")
    times: LogitNormalConfig = Field(LogitNormalConfig(mean=-0.4, std=1.0), description="of the two draws that t and s are")
    guidance: UndecayedGuidanceConfig = Field(UndecayedGuidanceConfig(), description="classifier-free guidance in training")


class ShortcutConfig(MethodConfig):
    samplers: ClassVar[Samplers] = ("ode", "heun")  # its jumps are of lengths 1, 1/2, 1/4, ... and no others
    whole_network: ClassVar[bool] = True  # which it calls with averaged weights, too
    name: Literal["shortcut"]
    step_share: Share = Field(0.25, description="share of the batch that learns steps from half steps")
    p: float = Field(0.0, ge=0, description="power of the adaptive weight; 0 is the plain square")
    eps: PositiveFloat = Field(0.01, description="floor of the adaptive weight")
    times: LogitNormalConfig = Field(LogitNormalConfig(mean=-0.2, std=1.0), description="density of t of flow matching")
    guidance: GuidanceConfig = Field(GuidanceConfig(), description="classifier-free guidance inside training")


class ConsistencyConfig(MethodConfig):
    samplers: ClassVar[Samplers] = ("renoise",)  # jumps to data alone, no velocity
    name: Literal["consistency"]
    p: float = Field(1.0, ge=0, description="power of the adaptive weight; 0 is the plain square")
    eps: PositiveFloat = Field(0.01, description="floor of the adaptive weight")
    times: LogitNormalConfig = Field(LogitNormalConfig(mean=0.2, std=0.8), description="density of t")
    middle: MiddleConfig = Field(MiddleConfig(), description="the middle time l = (1 - r) t")


ObjectiveConfig = Annotated[
    SoFlowConfig | FlowMatchingConfig | MeanFlowConfig | ShortcutConfig | ConsistencyConfig, Field(discriminator="name")
]


class OptimizerConfig(Section):
    name: Literal["adamw", "radam"] = Field("adamw", description="adamw or radam")
    lr: PositiveFloat = Field(1e-4, description="learning rate, constant after the warm-up")
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="decay of the two moments")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")


class EmaConfig(Section):
    decay: Decay = Field(0.9999, description="of the average of the weights, a step")
    every: PositiveInt = Field(1, description="steps between two updates, each by decay^every")
    float64: bool = Field(False, description="keep the average in float64")


class TrainConfig(Section):
    steps: PositiveInt = Field(400_000, description="number of steps K; r(k, K) depends on it")
    batch_size: PositiveInt = Field(256, description="samples a step, over all processes")
    accumulate: PositiveInt = Field(1, description="parts that a step's batch is worked off in, to save memory")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order and draws")
    log_every: PositiveInt = Field(100, description="steps between two lines of metrics.jsonl")
    sample_every: int = Field(5000, ge=0, description="steps between two sample grids; 0: only at the end")
    trackers: tuple[Literal["tensorboard"], ...] = Field((), description="also log to these, e.g. [tensorboard]")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="where a loss or gradient is not finite: stop, or skip the update"
    )
    max_skipped: int = Field(100, ge=0, description="updates that a run may skip; one more stops it")


class CheckpointConfig(Section):
    every: PositiveInt = Field(5000, description="steps between two checkpoints; one is always written at the end")
    keep_last: PositiveInt = Field(2, description="how many to keep")
    keep_every: int = Field(0, ge=0, description="also keep those of every so many steps; 0: none")
    on_failure: Literal["stop", "continue"] = Field(
        "stop", description="where one cannot be written, as on a full disk: stop, or continue without it"
    )


class EvaluateConfig(Section):
    nfe: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), min_length=1, description="network evaluations a sample, one row of the table each"
    )
    num: int = Field(2000, ge=2, description="samples to draw for each row")
    features: str = Field(
        "digits",
        description="inception (FID's), digits or classifier (trained on the data), coordinates, or a TorchScript file",
    )
    every: int = Field(
        0, ge=0, description="steps between two small evaluations during training, which keep the best; 0: none"
    )
    num_while_training: int = Field(1000, ge=2, description="samples that each of those draws")


class Config(Section):
    """One experiment, complete: with the code's version it says how to repeat the run."""

    description: str = Field("", description="what this recipe is for")
    init_from: str = Field("", description="weights to begin with: a file of a DiT or SiT, or a run of this network")
    init_time: Literal["same", "reversed"] = Field(
        "same", description="of that file: reversed where t = 0 is noise and t = 1 is data, as for SiT's velocity"
    )
    data: DataConfig = DataConfig()
    network: NetworkConfig = DiTConfig(name="dit")
    path: PathConfig = PathConfig()
    objective: ObjectiveConfig = SoFlowConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    precision: Literal["fp32", "tf32", "bf16", "bf16-tf32"] = Field(
        "fp32",
        description="of the passes: fp32, tf32 on a GPU, bf16 with the consistency pair in fp32, bf16-tf32 with it in tf32",
    )
    compile: bool = Field(False, description="compile the network's blocks: a slow first step, faster ones after it")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes: ddp, each holds the network; fsdp, a share of it, for networks that do not fit",
    )

    @field_validator("objective", mode="before")
    @classmethod
    def soflow_by_default(cls, section: Any) -> Any:
        return {"name": "soflow", **section} if isinstance(section, dict) else section

    @property
    def guidance_scale(self) -> float:
        """omega; 1 where nothing is guided, and for a method that has no guidance."""
        return 1.0 if isinstance(self.objective, ConsistencyConfig) else self.objective.guidance.scale

    @property
    def drawing(self) -> tuple[Literal["renoise", "ode", "euler", "heun"], int]:
        """The sampler, and its network evaluations, for a first look: one jump, or 32 Heun steps where none were learned."""
        first = self.objective.samplers[0]
        return ("heun", 64) if first == "euler" else (first, 1)

    @model_validator(mode="after")
    def parts_fit_together(self) -> "Config":
        """Rejects combinations that could only fail later, in the middle of a step."""
        vectors = len(self.data.shape) == 1
        if (self.network.name == "mlp") != vectors:
            raise ValueError(
                f"network.name={self.network.name} does not fit data.shape={list(self.data.shape)}: "
                f"use {'mlp for vectors' if vectors else 'dit or unet for images'}"
            )
        if self.network.name == "unet" and self.data.num_classes:
            raise ValueError("network.name=unet takes no labels: set data.num_classes=0")
        if self.data.augment and self.network.name != "unet":
            raise ValueError("data.augment needs a network that takes augmentation labels: set network.name=unet")
        if self.data.flip and (vectors or self.data.source == "latents" or self.data.augment):
            raise ValueError(
                "data.flip mirrors images: vectors have no mirror image, latents are mirrored by soflow encode --flip, "
                "and data.augment mirrors already: set data.flip=false"
            )
        if self.init_time == "reversed" and not self.init_from:
            raise ValueError("init_time=reversed says how to read init_from: set that, too")
        if self.objective.name in ("mean_flow", "shortcut") and self.path.parameterization != "euler":
            raise ValueError(f"objective.name={self.objective.name} learns mean velocities: set path.parameterization=euler")
        if self.guidance_scale > 1 and not self.data.num_classes:
            raise ValueError("objective.guidance.scale above 1 needs labels: set data.num_classes, or the scale to 1")
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} cannot be split into train.accumulate="
                f"{self.train.accumulate} equal parts"
            )
        return self

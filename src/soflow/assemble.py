"""From a configuration to the objects it names. The only place, beside the commands, that knows them all."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from soflow.config.reading import validate
from soflow.config.schema import (
    Config,
    ConsistencyConfig,
    DataConfig,
    FlowMatchingConfig,
    LogitNormalConfig,
    MeanFlowConfig,
    ShortcutConfig,
    SoFlowConfig,
)
from soflow.data import sources
from soflow.data.augment import AugmentPipe
from soflow.data.cache import Note
from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.guidance import Guidance
from soflow.networks.dit import DiT
from soflow.networks.mlp import MLP
from soflow.networks.unet import UNet
from soflow.objectives.base import Objective
from soflow.objectives.consistency import Consistency
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.mean_flow import MeanFlow, with_derivative
from soflow.objectives.shortcut import Shortcut
from soflow.objectives.soflow import SoFlow
from soflow.path import LinearPath, Path, TrigPath
from soflow.solution import EulerParameterization, FlowModel, Parameterization, TrigParameterization
from soflow.times import LogitNormal, MiddleTime
from soflow.training.compile import compiled

PATHS: dict[str, type[Path]] = {"linear": LinearPath, "trig": TrigPath}
PARAMETERIZATIONS: dict[str, type[Parameterization]] = {"euler": EulerParameterization, "trig": TrigParameterization}


def make_dataset(config: DataConfig, note: Note = lambda text: None) -> Dataset:
    """The data to train on, checked against the shape and the classes that the configuration states.

    Where it leaves the classes to the data (-1), `note` hears how many these have, or why none.
    """
    dataset = sources.load(config, config.split, note)
    if dataset.shape != config.shape:
        raise InputError(
            f"data.shape is {list(config.shape)}, but {config.path or config.source} has {list(dataset.shape)}: set "
            f"data.shape=[{','.join(map(str, dataset.shape))}]"
        )
    if config.num_classes == 0:
        return replace(dataset, labels=None, class_names=())
    named = bool(dataset.class_names) or dataset.labels is None  # else the largest classes may just not be among the data
    fits = dataset.num_classes == config.num_classes if named else dataset.num_classes <= config.num_classes
    if config.num_classes > 0 and not fits:
        why = f" ({dataset.unlabelled})" if dataset.unlabelled and dataset.labels is None else ""
        raise InputError(
            f"data.num_classes is {config.num_classes}, but {config.path or config.source} has {dataset.num_classes} "
            f"classes{why}; 0 trains without labels"
        )
    if config.num_classes < 0:
        note(told(dataset))
    return dataset


def told(dataset: Dataset) -> str:
    """How many samples and classes there are, and why there are no classes."""
    if dataset.labels is not None:
        return f"{dataset.name}: {len(dataset):,} samples, {dataset.num_classes:,} classes"
    why = f": {dataset.unlabelled}" if dataset.unlabelled else ""
    return f"{dataset.name}: {len(dataset):,} samples, training without classes{why}"


def with_classes(config: Config, dataset: Dataset) -> Config:
    """The configuration with as many classes as the data have, where it leaves that to them (-1)."""
    if config.data.num_classes >= 0:
        return config
    values = config.model_dump()
    values["data"]["num_classes"] = dataset.num_classes
    return validate(values)


def make_augment(config: DataConfig) -> AugmentPipe | None:
    return AugmentPipe(config.augment) if config.augment else None


def make_network(config: Config) -> nn.Module:
    """The network, freshly initialized from torch's current seed, on torch's current default device."""
    data, network = config.data, config.network
    settings = network.model_dump(exclude={"name"})
    try:
        if network.name == "mlp":
            return MLP(data.shape[0], data.num_classes, **settings)
        channels, height, width = data.shape
        if height != width:
            raise InputError(f"data.shape is {list(data.shape)}: images must be square, [C, H, H]")
        if network.name == "unet":
            labels = AugmentPipe.num_labels if data.augment else 0
            return UNet(height, channels, **settings, augment_labels=labels)
        return DiT(height, channels, data.num_classes, **settings)
    except ValueError as error:
        raise InputError(str(error)) from None


def make_objective(config: Config) -> Objective:
    objective = config.objective
    path, parameterization = PATHS[config.path.name](), PARAMETERIZATIONS[config.path.parameterization]()
    weight: dict[str, float] = {"p": objective.p, "eps": objective.eps}
    match objective:
        case SoFlowConfig(times=times):
            return SoFlow(
                path,
                parameterization,
                objective.lambda_,
                **weight,
                fm_times=logit_normal(times.flow_matching),
                t_times=logit_normal(times.t),
                s_times=logit_normal(times.s),
                middle=MiddleTime(**objective.middle.model_dump()),
                guidance=make_guidance(config),
            )
        case FlowMatchingConfig(times=times):
            return FlowMatching(path, parameterization, **weight, times=logit_normal(times), guidance=make_guidance(config))
        case MeanFlowConfig(times=times, velocity_share=share, derivative=which):
            return MeanFlow(
                path,
                share,
                which,
                **weight,
                times=logit_normal(times),
                guidance=make_guidance(config),
                with_derivative=compiled(with_derivative) if config.compile else with_derivative,
            )
        case ShortcutConfig(times=times, step_share=share):
            return Shortcut(path, share, **weight, times=logit_normal(times), guidance=make_guidance(config))
        case ConsistencyConfig(times=times, middle=middle):
            return Consistency(
                path, parameterization, **weight, times=logit_normal(times), middle=MiddleTime(**middle.model_dump())
            )


def make_guidance(config: Config) -> Guidance | None:
    """None for a method, or a scale, that does not guide."""
    if config.guidance_scale <= 1 or isinstance(config.objective, ConsistencyConfig):
        return None
    return Guidance(**config.objective.guidance.model_dump(), null_label=config.data.num_classes)


def logit_normal(config: LogitNormalConfig) -> LogitNormal:
    return LogitNormal(config.mean, config.std)


def make_model(config: Config, network: nn.Module, decode: Callable[[Tensor], Tensor] = lambda x: x) -> FlowModel:
    """The network as samplers and diagnostics see it, in evaluation mode."""
    return FlowModel(
        net=network.eval(),
        path=PATHS[config.path.name](),
        parameterization=PARAMETERIZATIONS[config.path.parameterization](),
        shape=config.data.shape,
        num_classes=config.data.num_classes,
        decode=decode,
    )

"""Checks of settings that depend on each other, across sections of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soflow.config.own import OWN
from soflow.networks.registry import fits, takes, what_fits

if TYPE_CHECKING:
    from soflow.config.schema import Config


def check_network(config: Config) -> None:
    """Checks that the network accepts the data's shape, labels, conditions and guidance."""
    network, data = config.network.component, config.data
    chosen = f"network.name={config.network.name}"
    if not fits(network, data.shape):
        shape = f"data.shape={list(data.shape)}"
        raise ValueError(f"{chosen} does not fit {shape}: use {what_fits()}")
    if not getattr(network, "takes_labels", True) and data.num_classes:
        raise ValueError(f"{chosen} does not take labels: set data.num_classes=0")
    if data.cond_shape and not takes(network, "cond"):
        raise ValueError(
            f"{chosen} does not take conditions, which the data have: choose another network, "
            "or set data.cond_column= (empty) to train without conditions"
        )
    if data.augment and len(data.shape) == 3 and not takes(network, "augment"):
        raise ValueError(
            f"data.augment does not work with {chosen}: set network.name=unet or data.augment=0"
        )
    if config.drawn_guidance and data.num_classes and not takes(network, "guidance"):
        raise ValueError(
            f"{chosen} does not take a guidance scale: choose another network, or set "
            "objective.guidance.max_scale=null to train with one fixed scale"
        )


def check_data(config: Config) -> None:
    """Checks that augmentation and balancing fit the data."""
    data = config.data
    images = len(data.shape) == 3
    if data.augment and not images:
        raise ValueError(
            f"data.augment needs images [C, H, W], but data.shape is {list(data.shape)}: set "
            "data.augment=0"
        )
    if data.cond_shape and data.random_crop:
        raise ValueError(
            "data.random_crop does not crop the conditions of samples: set it to 0, or set "
            "data.cond_column= (empty) to train without conditions"
        )
    if data.random_crop and not images:
        raise ValueError("data.random_crop needs images [C, H, W]: set it to 0")
    if data.balance and not data.num_classes:
        raise ValueError("data.balance needs classes: set data.num_classes, or data.balance=false")
    if data.flip and (not images or data.source == "latents" or data.augment):
        raise ValueError(
            "data.flip needs images without data.augment: set data.flip=false (data.augment "
            "already flips images; for latents, use soflow encode --flip)"
        )


def check_objective(config: Config) -> None:
    """Checks the parameterization that the objective needs, and labels for guidance."""
    chosen = f"objective.name={config.objective.name}"
    needed = config.of_objective("parameterization")
    if needed is not None and config.noising.parameterization != needed:
        raise ValueError(f"{chosen} needs noising.parameterization={needed}: set it")
    if config.data.num_classes:
        return
    if config.guidance_scale > 1:
        own = config.objective.name == OWN
        without = "guidance=soflow.Guidance()" if own else "objective.guidance.scale=1"
        raise ValueError(
            f"objective.guidance.scale above 1 needs labels: set data.num_classes, or {without}"
        )
    if config.drawn_guidance:
        raise ValueError(
            "objective.guidance.max_scale needs labels: set data.num_classes, or "
            "objective.guidance.max_scale=null"
        )


def check_training(config: Config) -> None:
    """Checks gradient accumulation, activation checkpointing and initial weights."""
    batch, count = config.train.batch_size, config.train.accumulate
    if batch % count:
        raise ValueError(
            f"train.batch_size={batch} is not divisible by train.accumulate={count}: change one"
        )
    if config.train.checkpoint_activations and config.of_objective("forward_derivative"):
        raise ValueError(
            f"train.checkpoint_activations does not work with the Jacobian-vector products of "
            f"objective.name={config.objective.name}: set it to false"
        )
    if config.init_time == "reversed" and not config.init_from:
        raise ValueError("init_time=reversed has no effect without init_from: set init_from")


def narrow_tokens(config: Config) -> str:
    """A warning if tokens have fewer dimensions than the patches they represent; '' if not.

    The network predicts a velocity, noise minus data, and noise fills all dimensions of a patch. A
    token with fewer dimensions cannot represent it, so samples keep noise.
    """
    network, shape = config.network, config.data.shape
    patch, width = getattr(network, "patch", 0), getattr(network, "width", 0)
    values = shape[0] * patch ** (len(shape) - 1)
    if not patch or width >= values:
        return ""
    return (
        f"network.width={width} is smaller than a patch, which has {values} values: samples will "
        f"be noisy; set a smaller network.patch, or network.width={values} or more"
    )


def small_ratio(config: Config) -> str:
    """A warning if JumpFlow's middle time l comes so close to t that rounding matters; '' if not.

    The consistency loss divides differences of F by t - l, so rounding errors grow by 1 / r. The
    paper's CIFAR-10 recipe, which uses SoFlow, has a smaller r.
    """
    end = getattr(getattr(config.objective, "middle", None), "end", 1.0)
    if end >= 0.001 or config.objective.name != "jump_flow":
        return ""
    return (
        f"objective.middle.end={end:g} is below 0.001: rounding errors can cost quality; set "
        "objective.middle.end=0.001 or more"
    )

"""Loading a run: its configuration, its weights, and what turns its samples into images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from soflow.assemble import make_model, make_network
from soflow.config import Config
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import DataRecord, Encoder, Scaling
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import Checkpoint
from soflow.run.folder import RunFolder, find_run
from soflow.sampling import Sampler
from soflow.solution import FlowModel
from soflow.system.devices import default_device
from soflow.system.memory import out_of_memory_explained

Decode = Callable[[Tensor], Tensor]
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Run:
    """A trained run, ready to sample from: a `model` with `weights` of `checkpoint`, on `device`.

    Runs on latents have an `encoder`, and `model.decode` makes images of their samples. Runs on
    standardized data have a `scaling`, and `model.decode` gives samples the data's own units.
    """

    folder: RunFolder
    config: Config
    checkpoint: Checkpoint
    model: FlowModel
    device: torch.device
    weights: Weights = "ema"
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None
    scaling: Scaling | None = None

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that suit the objective, its own first."""
        return self.config.samplers

    @property
    def default_sampler(self) -> tuple[Sampler, int]:
        """The sampler and the number of network evaluations that the configuration prefers."""
        return self.config.default_sampler


def load(
    path: str | Path, weights: Weights = "ema", device: str | None = None, vae: str = ""
) -> Run:
    """Loads a run for sampling.

    Args:
        path: A run folder, RUN/checkpoints/best, or one checkpoint inside a run folder.
        weights: "ema" for the averaged weights, "raw" for those of the last step.
        device: Where the model goes; a GPU by default, if there is one.
        vae: For runs on latents, a local copy of the autoencoder that made them, or its name.

    Raises:
        InputError: If there is no run, or it is a run of another version.
        RunError: If the checkpoint is damaged.
    """
    folder, checkpoint = find_run(Path(path), weights)
    config, data = folder.read_config(), DataRecord.read(folder.data)
    place = torch.device(device) if device else default_device()
    encoder, scaling = (data.encoder, data.scaling) if data else (None, None)
    decode, tensors = make_decoder(encoder, scaling, place, vae), checkpoint.weights(weights)
    try:
        model = load_model(config, tensors, place, decode, data)
    except RunError:
        raise
    except RuntimeError:  # names or shapes that load_state_dict cannot place
        raise RunError(
            f"{checkpoint.path} does not fit the network of {folder.config}: was it edited?"
        ) from None
    count = config.data.num_classes
    names = (data.class_names if data else ()) or tuple(map(str, range(count)))
    return Run(folder, config, checkpoint, model, place, weights, names[:count], encoder, scaling)


def load_model(
    config: Config,
    weights: dict[str, Tensor],
    device: torch.device,
    decode: Decode = lambda x: x,
    data: DataRecord | None = None,
) -> FlowModel:
    """A model with these weights on `device`, in evaluation mode and without gradients."""
    with torch.device("meta"):
        network = make_network(config)
    network.load_state_dict(weights, assign=True)
    with out_of_memory_explained("the network does not fit; choose another device, such as cpu"):
        network = network.to(device, torch.float32).requires_grad_(False).eval()
    return make_model(config, network, decode, data)


def make_decoder(
    encoder: Encoder | None, scaling: Scaling | None, device: torch.device, vae: str = ""
) -> Decode:
    """What turns samples into what people look at.

    Latents become images, standardized data get their own units back, all else is unchanged.

    Raises:
        InputError: If `vae` is given for a run that was not trained on latents.
    """
    if encoder is not None:
        return Decoder(encoder, device, vae)
    if vae:
        raise InputError(f"{vae} decodes latents, but this run was not trained on latents: omit it")
    return (lambda samples: samples) if scaling is None else scaling.restore

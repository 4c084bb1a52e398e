"""Loading a run: its configuration, its weights, and what turns its samples into images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from soflow.assemble import make_model, make_network
from soflow.config import Config
from soflow.config.own import OWN
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import DataRecord, Encoder, Scaling
from soflow.errors import InputError, RunError, in_short, placed_wrong
from soflow.guidance import AnyInterval, AnyScale
from soflow.run.checkpoint import Checkpoint
from soflow.run.folder import RunFolder, find_run
from soflow.sampling import Sampler
from soflow.solution import FlowModel, unchanged
from soflow.system.atomic import require_writable, write_bytes
from soflow.system.devices import default_device, named_device
from soflow.system.isolation import isolated
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, track
from soflow.workflows.labels import Classes
from soflow.workflows.own_parts import kind_of, own_network_of, remember

if TYPE_CHECKING:
    from soflow.evaluation.record import Evaluation

Decode = Callable[[Tensor], Tensor]
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Run:
    """A trained run that samples, evaluates and saves itself.

    `soflow.load` makes it.

    Attributes:
        folder: The run folder.
        config: The settings of the run.
        checkpoint: The checkpoint that the weights are from.
        model: The model. Its `decode` turns samples (B, ...) into images or into the data's units.
        device: The device of the model.
        weights: "ema" for averaged weights, "raw" for those of the last step.
        class_names: The names of the classes.
        encoder: The autoencoder of a run on latents.
        scaling: The statistics of a run on standardized data.
        own_network: The network that was given in Python, which the model has a copy of.

    Example:
        >>> import soflow
        >>> model = soflow.load("runs/digits")
        >>> images = model.sample(8, labels=[3, 7], nfe=1, seed=0, progress=soflow.silent)
        >>> images.shape, model.samplers
        (torch.Size([8, 1, 8, 8]), ('ode', 'renoise', 'heun'))
        >>> folder = model.save("models/digits")
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
    own_network: nn.Module | None = None

    def __repr__(self) -> str:
        return f"Run({self.checkpoint.path}, {self.weights}, {self.device})"

    def _repr_png_(self) -> bytes | None:
        """The newest sample grid of the run, which a notebook shows."""
        return self.folder._repr_png_()

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that suit the objective, its own first."""
        return self.config.samplers

    @property
    def default_sampler(self) -> tuple[Sampler, int]:
        """The sampler and the number of network evaluations that the configuration prefers."""
        return self.config.default_sampler

    @isolated
    def sample(
        self,
        num: int | None = None,
        labels: Classes | None = None,
        *,
        cond: Any = None,
        guidance: AnyScale | None = None,
        guidance_interval: AnyInterval | None = None,
        sampler: str | None = None,
        nfe: int | None = None,
        seed: int = 0,
        batch_size: int = 500,
        progress: Progress = track,
    ) -> Tensor:
        """Draws samples: the same, bit by bit, as `soflow sample`.

        Args:
            num: The number of samples; by default one per condition, or 64.
            labels: Classes to draw in turn, by name or number: a list, an array, a tensor, or a
                text such as "cat,dog"; None draws all classes in turn.
            cond: Conditions to draw in turn, (n, ...), as training takes them: floats, or bytes
                (uint8) of images. A model that was trained with conditions needs them.
            guidance: The guidance scale, or one for each sample, (num,), for a run whose scales
                were drawn in training (objective.guidance.max_scale); by default its setting
                objective.guidance.scale. Larger is closer to the class, and less diverse.
            guidance_interval: The start and the end of the times at which it acts, 0 at data and 1
                at noise; by default (0, 1).
            sampler: "renoise", "ode", "euler" or "heun"; by default what suits the objective.
            nfe: Network evaluations per sample; by default as few as suit the sampler.
            seed: The seed of the noise.
            batch_size: How many samples are drawn at once.
            progress: Shows how many samples are drawn.

        Returns:
            Samples on the CPU: images (num, C, H, W) in -1 to 1; other data (num, ...) in their own
            units.

        Raises:
            InputError: If a class or the sampler is unknown, the sampler cannot use `nfe`,
                conditions are missing or do not fit, or the run was not trained at such a scale.
        """
        from soflow.workflows.sample import SampleRequest, sample

        request = SampleRequest.of(
            self, num, labels, sampler=sampler, nfe=nfe, seed=seed, batch_size=batch_size,
            cond=cond, guidance=guidance, guidance_interval=guidance_interval,
        )  # fmt: skip
        return sample(self, request, progress)

    def evaluate(
        self, *, progress: Progress = track, data: Any = None, **settings: Any
    ) -> "Evaluation":
        """Evaluates the run with the weights that it has.

        Args:
            progress: Shows how much is done.
            data: What the run was trained on, if that was given in Python.
            settings: Fields of `EvaluationSettings`, such as `features`, `reference` or `num`.

        Returns:
            The figures with their protocol.

        Raises:
            InputError: If a setting does not suit the run.
        """
        from soflow.evaluation.evaluate import EvaluationSettings
        from soflow.workflows.evaluate import evaluate

        return evaluate(self, EvaluationSettings(**settings), progress, data)

    def save(self, out: str | Path) -> Path:
        """Saves what sampling needs: the settings, the classes, and the weights that are loaded.

        `soflow.load` and all commands take the folder like a run. It cannot be trained further, but
        another run can begin with its weights (init_from).

        Args:
            out: A new or empty folder.

        Returns:
            The folder.

        Raises:
            InputError: If the folder is not empty, or cannot be written.
        """
        folder = RunFolder(Path(out).expanduser())
        if folder.path.exists() and any(folder.path.iterdir()):
            raise InputError(f"{folder.path} is not empty: choose a new folder")
        place = folder.checkpoints / self.checkpoint.path.name
        require_writable(place)
        for file in self.checkpoint.files_of(self.weights):
            write_bytes(place / file.name, file.read_bytes())
        if self.folder.data.is_file():
            write_bytes(folder.data, self.folder.data.read_bytes())
        write_bytes(folder.config, self.folder.config.read_bytes())
        if self.own_network is not None:
            remember(folder.path, self.own_network)
        return folder.path


@isolated
def load(
    path: str | Path,
    weights: Weights | Literal["best"] = "ema",
    device: str | None = None,
    vae: str = "",
    network: nn.Module | None = None,
) -> Run:
    """Loads a run, or a model that `Run.save` wrote.

    Args:
        path: A run folder, RUN/checkpoints/best, or one checkpoint inside a run folder.
        weights: "ema" for the averaged weights, "raw" for those of the last step, "best" for the
            averaged ones of the checkpoint that evaluations during training found best.
        device: Where the model goes, such as "cpu", "cuda:1" or "gpu"; by default a GPU if there
            is one.
        vae: For runs on latents, a local copy of the autoencoder that made them, or its name.
        network: For a run with a network of one's own: that network, or one like it. Its weights
            are not used. The process that trained the run remembers it.

    Returns:
        The run, which has `sample`, `evaluate` and `save`.

    Raises:
        InputError: If there is no run, or it is a run of another version.
        RunError: If the checkpoint is damaged.

    Example:
        >>> import soflow
        >>> model = soflow.load("runs/digits", weights="raw", device="cpu")
        >>> model.sample(10, labels=[3, 7], progress=soflow.silent).shape
        torch.Size([10, 1, 8, 8])
    """
    if weights not in ("ema", "raw", "best"):
        raise InputError(f"weights is {in_short(weights)}: choose ema, raw or best")
    if weights == "best":
        path, weights = Path(path) / "checkpoints" / "best", "ema"
    folder, checkpoint = find_run(Path(path), weights)
    config, data = folder.read_config(), DataRecord.read(folder.data)
    if network is not None and config.network.name != OWN:
        raise InputError(f"{folder.path} has network.name={config.network.name}: omit network=")
    own = own_network_of(config, folder.path, network)
    place = named_device(device) if device else default_device()
    encoder, scaling = (data.encoder, data.scaling) if data else (None, None)
    decode, tensors = make_decoder(encoder, scaling, place, vae), checkpoint.weights(weights)
    try:
        model = load_model(config, tensors, place, decode, data, own)
    except RunError:
        raise
    except RuntimeError as error:  # names or shapes that load_state_dict cannot place
        if own is not None:
            raise InputError(
                f"{checkpoint.path} does not fit the network that is given, {kind_of(own)}: give "
                f"one like that of the run ({placed_wrong(error)})"
            ) from None
        raise RunError(
            f"{checkpoint.path} does not fit the network of {folder.config}: was it edited?"
        ) from None
    if own is not None:
        remember(folder.path, own)
    count = config.data.num_classes
    names = (data.class_names if data else ()) or tuple(map(str, range(count)))
    names = names[:count]
    return Run(folder, config, checkpoint, model, place, weights, names, encoder, scaling, own)


def load_model(
    config: Config,
    weights: dict[str, Tensor],
    device: torch.device,
    decode: Decode = unchanged,
    data: DataRecord | None = None,
    own: nn.Module | None = None,
) -> FlowModel:
    """A model with these weights on `device`, in evaluation mode and without gradients."""
    with torch.device("meta"):
        network = make_network(config, own)
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
    return unchanged if scaling is None else scaling.restore

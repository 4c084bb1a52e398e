"""Loads a run: its configuration, its weights, and the decoder of its samples."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from soflow.assemble import is_built_in, make_model, make_network
from soflow.config import Config
from soflow.config.own import OWN
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import DataRecord, Encoder, Scaling
from soflow.errors import InputError, RunError, first_problem, in_short
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
    """A trained run. It can draw samples, be evaluated and be saved.

    `soflow.load` creates it.

    Attributes:
        folder: The run folder.
        config: The settings of the run.
        checkpoint: The checkpoint of the weights.
        model: The model. Its `decode` turns network outputs (B, ...) into images, or into the
            units of the data.
        device: The device of the model.
        weights: "ema" for EMA weights, "raw" for the weights of the last step.
        class_names: The names of the classes.
        encoder: The autoencoder, for runs on latents.
        scaling: The mean and standard deviation, for runs on standardized data.
        own_network: The network passed from Python. The model holds a copy of it.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> images = run.sample(8, labels=[3, 7], nfe=1, seed=0, progress=soflow.silent)
        >>> images.shape, run.samplers
        (torch.Size([8, 1, 8, 8]), ('ode', 'renoise', 'heun'))
        >>> folder = run.save("models/digits")
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
        """The newest sample grid of the run, for display in a notebook."""
        return self.folder._repr_png_()

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that work with the objective. The first one is the default."""
        return self.config.samplers

    @property
    def default_sampler(self) -> tuple[Sampler, int]:
        """The default sampler and number of network evaluations (NFE)."""
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
        times: Sequence[Any] | None = None,
        seed: int = 0,
        batch_size: int = 500,
        progress: Progress = track,
    ) -> Tensor:
        """Draws samples. They are bit-identical to the samples of `soflow sample`.

        Args:
            num: The number of samples. By default, one per condition, or 64 without conditions.
            labels: The classes of the samples, in turn, by name or number: a list, an array, a
                tensor, or a string such as "cat,dog". By default, all classes in turn.
            cond: The conditions of the samples, in turn, (n, ...), in the form used for training:
                floats, or images as bytes (uint8). Required if the run was trained with conditions.
            guidance: The guidance scale, one number or one per sample, (num,). Requires a run
                trained with random guidance scales (objective.guidance.max_scale). By default,
                the run's setting objective.guidance.scale. A larger scale gives samples that match
                their class better and are less diverse.
            guidance_interval: The interval (start, end) of t in which guidance acts; t = 0 is data,
                t = 1 is noise. By default (0, 1).
            sampler: "renoise", "ode", "euler" or "heun". By default, the first of `samplers`.
            nfe: The number of network evaluations per sample. By default 1, or 2 for Heun's method.
                If neither `sampler` nor `nfe` is given, runs trained by flow matching use Heun's
                method with 64 evaluations.
            times: The times of `renoise` and `ode`, from 1 (noise) to 0 (data), such as
                [1, 0.9, 0] for two evaluations. By default, evenly spaced.
            seed: The seed of the noise.
            batch_size: The number of samples drawn at once.
            progress: Shows the progress.

        Returns:
            Samples on the CPU: images (num, C, H, W) in [-1, 1], or other data (num, ...) in the
            units of the training data.

        Raises:
            InputError: If a class or the sampler is unknown, the sampler does not work with the
                objective or does not support `nfe` or `times`, conditions are missing or do not
                fit, or the run was not trained with this guidance scale.
            RunError: If memory runs out.
        """
        from soflow.workflows.sample import sample
        from soflow.workflows.sample_request import SampleRequest

        request = SampleRequest.of(
            self, num, labels, sampler=sampler, nfe=nfe, seed=seed, batch_size=batch_size,
            cond=cond, guidance=guidance, guidance_interval=guidance_interval, times=times,
        )  # fmt: skip
        return sample(self, request, progress)

    def evaluate(
        self, *, progress: Progress = track, data: Any = None, **settings: Any
    ) -> "Evaluation":
        """Evaluates the run with the loaded weights.

        Args:
            progress: Shows the progress.
            data: The training data, if it was passed to `soflow.train` in Python.
            settings: Fields of `EvaluationSettings`, such as `features`, `reference` or `num`.

        Returns:
            The results with their protocol.

        Raises:
            InputError: If a setting does not fit the run.
            RunError: If a sample contains NaN or infinity, or memory runs out.
        """
        from soflow.evaluation.evaluate import EvaluationSettings
        from soflow.workflows.evaluate import evaluate

        return evaluate(self, EvaluationSettings(**settings), progress, data)

    def save(self, out: str | Path) -> Path:
        """Saves the model for sampling: the settings, the classes and the loaded weights.

        `soflow.load` and all commands accept the folder as a run. The run cannot be resumed, but
        another run can start from its weights (init_from).

        Args:
            out: A new or empty folder.

        Returns:
            The folder.

        Raises:
            InputError: If the folder is not empty or not writable.
            RunError: If a file cannot be written.
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
        path: A run folder, or a checkpoint in it, such as RUN/checkpoints/best.
        weights: "ema" for the EMA weights, "raw" for the weights of the last step, or "best" for
            the EMA weights of the best checkpoint, according to the evaluations during training.
        device: The device for the model, such as "cpu", "cuda:1" or "gpu". By default, a GPU if
            one is available.
        vae: For runs on latents: the autoencoder that encoded the training data, as a folder or a
            name on the Hugging Face Hub. By default, the name recorded in the run.
        network: For runs with a custom network: a network of the same architecture. Its weights
            are not used. Not needed in the process that trained the run.

    Returns:
        The run, with the methods `sample`, `evaluate` and `save`.

    Raises:
        InputError: If the run does not exist, or was written by an incompatible version.
        RunError: If the checkpoint is damaged.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits", weights="raw", device="cpu")
        >>> run.sample(10, labels=[3, 7], progress=soflow.silent).shape
        torch.Size([10, 1, 8, 8])
    """
    if weights not in ("ema", "raw", "best"):
        raise InputError(f"weights is {in_short(weights)}: choose ema, raw or best")
    if weights == "best":
        path, weights = Path(path) / "checkpoints" / "best", "ema"
    folder, checkpoint = find_run(Path(path), weights)
    config, data = folder.read_config(), DataRecord.read(folder.data)
    if network is not None and config.network.name != OWN:
        raise InputError(
            f"network= is for runs with a custom network, but {folder.path} has "
            f"network.name={config.network.name}: leave out network="
        )
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
                f"{checkpoint.path} does not fit the network {kind_of(own)}: pass the network that "
                f"the run was trained with ({first_problem(error)})"
            ) from None
        raise RunError(
            f"{checkpoint.path} does not fit the network in {folder.config}: if you have edited "
            "the file, restore it"
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
    """A model with these weights on `device`, in evaluation mode, without gradients."""
    with without_weights(config):
        network = make_network(config, own)
    network.load_state_dict(weights, assign=True)
    with out_of_memory_explained("the network does not fit: choose another device, such as cpu"):
        network = network.to(device, torch.float32).requires_grad_(False).eval()
    return make_model(config, network, decode, data)


def without_weights(config: Config) -> AbstractContextManager[Any]:
    """Builds a built-in network without memory for its weights, inside the block.

    Other networks are built as usual, without changing the random state: they may have tensors that
    are not part of their weights.
    """
    return torch.device("meta") if is_built_in(config) else torch.random.fork_rng(devices=[])


def make_decoder(
    encoder: Encoder | None, scaling: Scaling | None, device: torch.device, vae: str = ""
) -> Decode:
    """The function that decodes samples.

    It decodes latents into images, and undoes the standardization of data. Other samples stay
    unchanged.

    Raises:
        InputError: If `vae` is given for a run that was not trained on latents.
    """
    if encoder is not None:
        return Decoder(encoder, device, vae)
    if vae:
        raise InputError(
            f"the autoencoder {vae} decodes latents, but this run was not trained on latents: "
            "omit it"
        )
    return unchanged if scaling is None else scaling.restore

"""Runs as a whole: train a recipe into a folder, load what a folder holds."""

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soflow.assemble import (
    make_augment,
    make_model,
    make_network,
    make_objective,
)
from soflow.config import Config, read_recipe
from soflow.config.reading import fields, lookup
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import ENCODER, Dataset, Encoder, encoder_of
from soflow.data.training_data import make_dataset, with_classes
from soflow.errors import InputError, RunError
from soflow.evaluation.features import check_name
from soflow.evaluation.pictures import picture
from soflow.evaluation.references import make_scoring
from soflow.interop.pretrained import load_pretrained
from soflow.run.checkpoint import Checkpoint, TrainState, checkpoints
from soflow.run.folder import RunFolder, find_run
from soflow.run.lock import only_trainer_of
from soflow.sampling import class_by_class, draw, sample_many
from soflow.solution import FlowModel
from soflow.system import processes
from soflow.system.atomic import write_bytes
from soflow.system.devices import default_device
from soflow.system.records import damaged, is_like
from soflow.training.compile import compiled
from soflow.training.display import Display, make_display
from soflow.training.peers import lost_processes_explained
from soflow.training.signals import Stopped
from soflow.training.trainer import Measure, Trainer, require_trackers

log = logging.getLogger(__name__)

Decode = Callable[[Tensor], Tensor]
Watched = Callable[[TrainState, FlowModel, torch.device], None]
Weights = Literal["ema", "raw"]

#: Keys that may change when a run is taken up again: they touch what is learned by rounding at most, and dropout's masks.
FREE_KEYS = (
    "description",
    "data.path",
    "checkpoint.",
    "compile",
    "evaluate.",
    "parallel",
    "train.accumulate",
    "train.log_every",
    "train.max_skipped",
    "train.on_nonfinite",
    "train.sample_every",
    "train.trackers",
)


#: What data.json has, or lacks in runs of earlier versions.
DATA = {"class_names": ([str], None), "encoder": (ENCODER, None)}


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, its configuration, the checkpoint that was read, and the model in it."""

    folder: RunFolder
    config: Config
    checkpoint: Checkpoint
    model: FlowModel
    device: torch.device
    notes: list[str]
    weights: Weights = "ema"
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None


def train(
    recipe: str | Config,
    out: str | Path,
    overrides: Sequence[str] = (),
    display: Display | None = None,
    watch: Watched = lambda state, model, device: None,
) -> RunFolder:
    """Trains a recipe (a shipped name, a YAML file or a Config) in the folder `out`, or goes on with what lies there.

    Shows its progress on stderr, or on another `display`. `watch` is called, with the averaged weights, where a sample grid
    is drawn. Raises InputError for settings that cannot be used or that differ from those the folder was begun with,
    RunError where the folder is being trained by another process, where numbers go wrong, and where nothing can be written.
    """
    config = recipe if isinstance(recipe, Config) else read_recipe(recipe, overrides)
    folder = RunFolder(Path(out))
    display = display or make_display()
    require_trackers(config.train.trackers)
    dataset = make_dataset(config.data)
    config = with_classes(config, dataset)
    if config.train.batch_size > len(dataset):
        raise InputError(
            f"train.batch_size={config.train.batch_size} is larger than the data, {len(dataset)} samples: "
            "a batch would hold some twice; make it smaller"
        )
    first = processes.index() == 0
    with only_trainer_of(folder.path) if first else nullcontext(), lost_processes_explained():
        trainer = make_trainer(config, folder, dataset, display, watch)
        try:
            if first:
                folder.create()
                folder.write_config(config)
                if not checkpoints(folder.checkpoints) or not folder.data.is_file():
                    folder.write_data(dataset.describe())
            trainer.run()
        except BaseException as error:
            if (
                isinstance(error, Stopped) or trainer.accelerator.num_processes == 1
            ):  # else it would wait for the others
                trainer.close()
            raise
        trainer.close()
    return folder


def make_trainer(
    config: Config, folder: RunFolder, dataset: Dataset, display: Display, watch: Watched
) -> Trainer:
    """The trainer of a run, which has taken up what lies in the folder, if anything does."""
    if checkpoints(folder.checkpoints):
        if not folder.config.is_file():
            raise InputError(
                f"{folder.path} has checkpoints, but no config.yaml that says how they were made: bring it back, or begin "
                "anew in another folder with --out"
            )
        require_same(folder.read_config(), config, folder)
        require_same_data(folder.read_data(), dataset.describe(), folder)
    torch.manual_seed(config.train.seed)
    network = make_network(config)
    if config.init_from and not checkpoints(folder.checkpoints):
        for note in load_pretrained(network, Path(config.init_from), config.init_time):
            log.info(note)

    decode = decoder_if_any(dataset.encoder)
    check_name(config.evaluate.features)
    measure = measuring(config, dataset.encoder) if config.evaluate.every else None

    def draw_and_watch(state: TrainState, weights: dict[str, Tensor], device: torch.device) -> None:
        model = model_of(config, weights, device, decode)
        draw_samples(config, folder, state.step, model, device)
        watch(state, model, device)

    return Trainer(
        model=make_model(config, network),
        objective=make_objective(config, compiled if config.compile else None),
        dataset=dataset,
        augment=make_augment(config),
        config=config,
        folder=folder,
        display=display,
        watch=draw_and_watch,
        measure=measure,
    )


def require_same(begun: Config, asked: Config, folder: RunFolder) -> None:
    """Raises InputError naming the first setting in which a run to be taken up differs from what is asked now."""
    for key in dict.fromkeys(key for key, _ in fields()):
        old, new = lookup(begun, key), lookup(asked, key)
        if old != new and not key.startswith(FREE_KEYS):
            raise InputError(
                f"{folder.path} was begun with {key}={old}, and this asks for {new}: "
                "train with the same settings to go on, or begin anew in another folder with --out"
            )


def require_same_data(begun: dict[str, Any], now: dict[str, Any], folder: RunFolder) -> None:
    """Raises InputError where a run to be taken up saw other data: their order, and what latents mean, would change."""
    for key in ("count", "class_names", "encoder"):
        if key in begun and begun[key] != now[key]:
            what = f"whose {key.replace('_', ' ')} was {shortened(begun[key])}, and now is {shortened(now[key])}"
            raise InputError(
                f"{folder.path} was begun on data {what}: give back the data it began with, or begin anew with --out and "
                f"init_from={folder.path}"
            )
    if (
        "content" in begun and begun["content"] != now["content"]
    ):  # runs of earlier versions did not note it
        raise InputError(
            f"{folder.path} was begun on other data, as many and of the same classes, but not these: give back the data it "
            f"began with, or begin anew with --out and init_from={folder.path}"
        )


def shortened(value: Any) -> str:
    text = (
        ", ".join(f"{key} {one}" for key, one in value.items())
        if isinstance(value, dict)
        else str(value)
    )
    return text if len(text) < 80 else f"{text[:76]} ..."


def load(
    path: str | Path, weights: Weights = "ema", device: str | None = None, vae: str = ""
) -> Run:
    """A run folder, or one checkpoint inside it, ready to sample from. `device` defaults to a GPU where there is one.

    Samples of a run on latents are decoded by the autoencoder that made them, or by `vae`, such as a local copy of it.
    Raises InputError where there is no run, RunError where its checkpoint is damaged.
    """
    folder, checkpoint, notes = find_run(Path(path))
    config = folder.read_config()
    place = torch.device(device) if device else default_device()
    data = folder.read_data()
    if not is_like(data, DATA):
        raise damaged(folder.data)
    encoder = encoder_of(data["encoder"]) if data.get("encoder") else None
    try:
        model = model_of(config, checkpoint.weights(weights), place, decoder(encoder, place, vae))
    except RuntimeError:  # names or shapes that load_state_dict cannot place
        raise RunError(
            f"the weights in {checkpoint.path} do not fit the network of {folder.config}: was it edited?"
        ) from None
    names = tuple(data.get("class_names") or map(str, range(config.data.num_classes)))
    return Run(
        folder,
        config,
        checkpoint,
        model,
        place,
        notes,
        weights,
        names[: config.data.num_classes],
        encoder,
    )


def decoder(encoder: Encoder | None, device: torch.device, vae: str = "") -> Decode:
    """From samples to what people look at: the autoencoder's images of latents, all else as it is."""
    if encoder is None:
        if vae:
            raise InputError(
                f"{vae} was given to decode latents, but this run was not trained on latents: leave it out"
            )
        return lambda samples: samples
    return Decoder(encoder, device, vae)


def decoder_if_any(encoder: Encoder | None) -> Decode:
    """As `decoder`, for pictures while training: where the autoencoder cannot be loaded, that is said once, and they show
    the latents themselves.
    """
    decode = decoder(encoder, default_device())
    try:
        if isinstance(decode, Decoder):
            decode.loaded  # loads it
    except InputError as error:
        log.info(
            f"{error}; until then pictures in samples/ show the first three channels of latents"
        )
        return lambda samples: samples
    return decode


def model_of(
    config: Config, weights: dict[str, Tensor], device: torch.device, decode: Decode = lambda x: x
) -> FlowModel:
    """A model with these weights, on `device`."""
    with torch.device("meta"):
        network = make_network(config)
    network.load_state_dict(weights, assign=True)
    network = network.to(device, torch.float32).requires_grad_(False).eval()
    return make_model(config, network, decode)


def measuring(config: Config, encoder: Encoder | None) -> Measure:
    """What training evaluates itself by: the distance of a few samples by the run's first sampler, where evaluate.every is
    set. The first process alone prepares it. Raises InputError for features that cannot be loaded, or an autoencoder.
    """
    if processes.index() > 0:
        return lambda weights, device: {}
    decode = decoder(encoder, default_device())
    if isinstance(decode, Decoder):
        decode.loaded  # loads it: latents as they are would be measured as images
    scorer, num, (sampler, nfe) = (
        make_scoring(config, encoder, decode, baseline=False).scorer,
        config.evaluate.num_while_training,
        config.default_sampler,
    )

    def measure(weights: dict[str, Tensor], device: torch.device) -> dict[str, float]:
        model = model_of(config, weights, device, decode)
        labels = class_by_class(num, model.num_classes)
        return {
            scorer.features.metric: scorer.distance(
                scorer.gather(draw(model, num, labels, sampler, nfe, 0, device=device), num)
            )
        }

    return measure


def draw_samples(
    config: Config, folder: RunFolder, step: int, model: FlowModel, device: torch.device
) -> None:
    """Samples as a picture: images with a column for each class, points as a scatter plot."""
    if len(config.data.shape) == 1:
        num, columns = 2000, 1
    else:
        columns = min(config.data.num_classes or 8, 10)
        num = columns * ceil(40 / columns)
    labels = None if not config.data.num_classes else torch.arange(num) % columns
    samples = sample_many(
        model, num, labels, *config.default_sampler, seed=0, batch_size=num, device=device
    )
    stream = io.BytesIO()
    picture(samples, columns).save(stream, format="png")
    write_bytes(folder.samples / f"step-{step:08d}.png", stream.getvalue())

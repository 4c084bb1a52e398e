"""Runs as a whole: train a recipe into a folder, load what a folder holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from soflow.assemble import make_augment, make_dataset, make_model, make_network, make_objective
from soflow.config import Config, read_recipe
from soflow.config.reading import fields, lookup
from soflow.errors import InputError, RunError
from soflow.interop.pretrained import load_pretrained
from soflow.pictures import save_picture
from soflow.sampling import sample_many
from soflow.solution import FlowModel
from soflow.training.checkpoint import Checkpoint, TrainState, checkpoints, newest_good
from soflow.training.display import Display, make_display
from soflow.training.processes import lost_processes_explained
from soflow.training.run_folder import RunFolder, find_run
from soflow.training.signals import Stopped
from soflow.training.trainer import Trainer, require_trackers

#: Keys that may change when a run is taken up again: they do not touch what is learned.
FREE_KEYS = (
    "description",
    "checkpoint.",
    "evaluate.",
    "parallel",
    "train.log_every",
    "train.sample_every",
    "train.trackers",
)


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, its configuration, the checkpoint that was read, and the model in it."""

    folder: RunFolder
    config: Config
    checkpoint: Checkpoint
    model: FlowModel
    device: torch.device
    notes: list[str]


def train(
    recipe: str | Config,
    out: str | Path,
    overrides: Sequence[str] = (),
    display: Display | None = None,
    watch: Callable[[TrainState, FlowModel, torch.device], None] = lambda state, model, device: None,
) -> RunFolder:
    """Trains a recipe (a shipped name, a YAML file or a Config) in the folder `out`, or goes on with what lies there.

    Shows its progress on stderr, or on another `display`. `watch` is called, with the averaged weights, where a sample grid
    is drawn. Raises InputError for settings that cannot be used or that differ from those the folder was begun with,
    RunError when a run's numbers go wrong.
    """
    config = recipe if isinstance(recipe, Config) else read_recipe(recipe, overrides)
    folder = RunFolder(Path(out))
    dataset = make_dataset(config.data)
    require_trackers(config.train.trackers)
    if folder.config.exists() and checkpoints(folder.checkpoints):
        require_same(folder.read_config(), config, folder)
    display = display or make_display()
    torch.manual_seed(config.train.seed)
    network = make_network(config)
    if config.init_from and newest_good(folder.checkpoints)[0] is None:
        for note in load_pretrained(network, Path(config.init_from), config.init_time):
            display.note(note)

    def draw_and_watch(state: TrainState, weights: dict[str, Tensor], device: torch.device) -> None:
        model = model_of(config, weights, device)
        draw_samples(config, folder, state.step, model, device)
        watch(state, model, device)

    with lost_processes_explained():
        trainer = Trainer(
            network=network,
            objective=make_objective(config),
            dataset=dataset,
            augment=make_augment(config.data),
            config=config,
            folder=folder,
            display=display,
            watch=draw_and_watch,
        )
        try:
            if trainer.accelerator.is_main_process:
                folder.create()
                folder.write_config(config)
            trainer.run()
        except BaseException as error:
            if isinstance(error, Stopped) or trainer.accelerator.num_processes == 1:  # else it would wait for the others
                trainer.close()
            raise
        trainer.close()
    return folder


def require_same(begun: Config, asked: Config, folder: RunFolder) -> None:
    """Raises InputError naming the first setting in which a run to be taken up differs from what is asked now."""
    for key in dict.fromkeys(key for key, _ in fields()):
        old, new = lookup(begun, key), lookup(asked, key)
        if old != new and not key.startswith(FREE_KEYS):
            raise InputError(
                f"{folder.path} was begun with {key}={old}, and this asks for {new}: "
                "train with the same settings to go on, or begin anew in another folder with --out"
            )


def load(path: str | Path, weights: Literal["ema", "raw"] = "ema", device: str | None = None) -> Run:
    """A run folder, or one checkpoint inside it, ready to sample from. `device` defaults to a GPU where there is one.

    Raises InputError where there is no run, RunError where its checkpoint is damaged.
    """
    folder, checkpoint, notes = find_run(Path(path))
    config = folder.read_config()
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        model = model_of(config, checkpoint.weights(weights), place)
    except RuntimeError:  # names or shapes that load_state_dict cannot place
        raise RunError(
            f"the weights in {checkpoint.path} do not fit the network of {folder.config}: was it edited?"
        ) from None
    return Run(folder, config, checkpoint, model, place, notes)


def model_of(config: Config, weights: dict[str, Tensor], device: torch.device) -> FlowModel:
    """A model with these weights, on `device`."""
    with torch.device("meta"):
        network = make_network(config)
    network.load_state_dict(weights, assign=True)
    return make_model(config, network.to(device, torch.float32).requires_grad_(False))


def draw_samples(config: Config, folder: RunFolder, step: int, model: FlowModel, device: torch.device) -> None:
    """Samples as a picture: images with a column for each class, points as a scatter plot."""
    if len(config.data.shape) == 1:
        num, columns = 2000, 1
    else:
        columns = min(config.data.num_classes or 8, 10)
        num = columns * ceil(40 / columns)
    labels = None if not config.data.num_classes else torch.arange(num) % columns
    samples = sample_many(model, num, labels, *config.drawing, seed=0, batch_size=num, device=device)
    save_picture(samples, folder.samples / f"step-{step:08d}.png", columns)

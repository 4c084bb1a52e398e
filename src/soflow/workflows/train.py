"""Training a recipe in a run folder."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from soflow.assemble import make_augment, make_model, make_network, make_objective
from soflow.config import Config, read_recipe
from soflow.config.reading import keys_of, with_overrides
from soflow.data import own
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import DataRecord, Dataset
from soflow.data.sources import require_path_is_read
from soflow.data.training_data import completed, make_dataset, summary
from soflow.errors import InputError
from soflow.evaluation.features import check_name, column_names
from soflow.evaluation.pairs import PAIRS, ROWS, draw_pairs, paired
from soflow.evaluation.pictures import picture, png
from soflow.evaluation.references import make_scoring
from soflow.evaluation.scorer import as_frequent
from soflow.interop.pretrained import load_pretrained
from soflow.run.checkpoint import TrainState, checkpoints
from soflow.run.folder import RunFolder
from soflow.run.lock import only_trainer_of
from soflow.run.resume import changed_settings, keep_older, require_same_data
from soflow.sampling import class_by_class, draw, sample_many
from soflow.solution import FlowModel, unchanged
from soflow.system import processes
from soflow.system.atomic import write_bytes
from soflow.system.devices import default_device
from soflow.system.logs import show_notes
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, track
from soflow.training.automatic import resolve
from soflow.training.compile import compiled
from soflow.training.distributed import (
    lost_processes_explained,
    require_plain_launch,
    same_everywhere,
)
from soflow.training.looks import Measure
from soflow.training.memory import TOO_LARGE
from soflow.training.signals import Stopped
from soflow.training.trackers import require_trackers
from soflow.training.trainer import Trainer
from soflow.workflows.going_on import go_on, settings_of
from soflow.workflows.load import Decode, load_model, make_decoder

log = logging.getLogger(__name__)

#: Vectors in a picture.
POINTS = 2000

Watch = Callable[[TrainState, FlowModel, torch.device], None]


def train(
    recipe: str | Path | Config,
    out: str | Path,
    overrides: Sequence[str] = (),
    progress: Progress = track,
    watch: Watch = lambda state, model, device: None,
    data: Any = None,
) -> RunFolder:
    """Trains a recipe in a run folder, or resumes the run that is there.

    A resumed run keeps its settings. Those that may change (run/resume.py) change if they are among
    `overrides`: train.steps=N trains a finished run further. history.jsonl records each change.

    Args:
        recipe: The name of a shipped recipe, a YAML file, a run folder, or a configuration.
        out: The run folder.
        overrides: Changes to the recipe or configuration, such as "train.steps=2000".
        progress: Shows the steps; by default a bar or lines on stderr.
        watch: Called with the averaged weights each time a sample grid is drawn.
        data: Data of your own in place of the recipe's: a tensor or an array (N, ...); samples and
            labels, (x, y); a dictionary of arrays `image` or `data`, `label` and `cond`; a data
            set of torch with `__len__`, whose items are samples, (sample, label) or such
            dictionaries; or a `datasets.Dataset`. Their shape and classes replace the recipe's;
            data.num_classes=0 ignores labels, data.cond_column= ignores conditions. Floats are
            taken as they are, so images should lie in -1 to 1; only images in 0 to 1, or 0 to 255
            as bytes, are scaled, and data.range=[low,high] decides. To resume, give the same data
            again.

    Returns:
        The run folder, for `soflow.load`.

    Raises:
        InputError: If settings cannot be used, or differ from those the run was begun with.
        RunError: If another process trains in the folder, if numbers are no longer finite, or if
            a checkpoint cannot be written.
        KeyboardInterrupt: After Ctrl-C, with a checkpoint written.
        SystemExit: After SIGTERM, with a checkpoint written.
    """
    if progress is track:
        show_notes()
    config = recipe if isinstance(recipe, Config) else read_recipe(recipe)
    config = with_overrides(config, overrides)
    if data is not None:
        with own.given(data, config) as config:
            return train(config, out, overrides, progress, watch)
    given = keys_of(overrides)
    folder = RunFolder(Path(out).expanduser())
    require_own_data(config, folder)
    require_plain_launch()
    require_trackers(config.train.trackers)
    if "data.path" in given:
        require_path_is_read(config.data)
    dataset = training_data(config, folder)
    config = completed(config, dataset)
    if (size := config.train.batch_size) > len(dataset):
        count = f"{len(dataset)} samples"
        raise InputError(f"train.batch_size={size} is larger than the data ({count}): reduce it")
    first = processes.index() == 0
    with only_trainer_of(folder.path) if first else nullcontext(), lost_processes_explained():
        begun = settings_of(folder)
        config, note = chosen_settings(config, begun, given)
        changed = changed_settings(begun, config, given, folder) if begun else []
        with out_of_memory_explained(TOO_LARGE):
            trainer = make_trainer(config, folder, dataset, progress, watch, begun is not None)
        try:
            if begun is not None:
                go_on(trainer, begun, changed, write=first)
            if first:
                write_head(config, folder, dataset)
            for line in summary(config.data, dataset):
                log.info(f"data: {line}")
            if note:
                log.info(note)
            trainer.run()
        except BaseException as error:
            # After other errors, closing would wait for processes that do not come.
            if isinstance(error, Stopped) or trainer.accelerator.num_processes == 1:
                trainer.close()
            raise
        trainer.close()
    return folder


def require_own_data(config: Config, folder: RunFolder) -> None:
    """Raises InputError if a run on data given in Python is to go on without them."""
    begun = bool(checkpoints(folder.checkpoints)) and folder.config.is_file()
    if begun and config.data.source != own.NAME == folder.read_config().data.source:
        raise InputError(own.MISSING)


def training_data(config: Config, folder: RunFolder) -> Dataset:
    """The data to train on. Of a run that goes on, an error says that they must be the same."""
    try:
        return make_dataset(config.data)
    except InputError as error:
        if not checkpoints(folder.checkpoints) or config.data.source == own.NAME:
            raise
        raise InputError(
            f"{folder.path} goes on with the data that it was begun on: restore them, give "
            "data.path=PLACE if they have moved, or begin a new run with --out and "
            f"init_from={folder.path} ({error})"
        ) from None


def make_trainer(
    config: Config,
    folder: RunFolder,
    dataset: Dataset,
    progress: Progress,
    watch: Watch,
    resumed: bool,
) -> Trainer:
    """The trainer of a run, at the step of the newest checkpoint."""
    if resumed and (data := DataRecord.read(folder.data)) is not None:
        require_same_data(data, dataset.describe(), folder)
    torch.manual_seed(config.train.seed)
    network = make_network(config)
    if config.init_from and not resumed:
        source, names = Path(config.init_from).expanduser(), dataset.class_names
        for note in load_pretrained(network, source, config.init_time, names, config.data.shape):
            log.info(note)

    decode = picture_decoder(dataset)
    check_name(config.evaluate.features)
    measure = make_measure(config, dataset) if config.evaluate.every else None

    def draw_and_watch(state: TrainState, weights: dict[str, Tensor], device: torch.device) -> None:
        model = load_model(config, weights, device, decode)
        draw_samples(config, folder, state.step, model, device, dataset)
        watch(state, model, device)

    model, augment = make_model(config, network), make_augment(config)
    objective = make_objective(config, compiled if config.compile else None)
    return Trainer(
        model, objective, dataset, augment, config, folder, progress, draw_and_watch, measure
    )


def chosen_settings(
    config: Config, begun: Config | None, given: Sequence[str]
) -> tuple[Config, str]:
    """`precision` and `compile` as a resumed run has them or as suits the machine, and a note.

    If they are given as "auto" explicitly, they are chosen anew.
    """
    config = keep_older(config, begun, given)
    if begun is not None:
        anew = {name: "auto" for name in ("precision", "compile") if name in given}
        begun = begun.model_copy(update=anew)
    chosen, note = resolve(config, default_device(), begun)
    precision, compile = same_everywhere((chosen.precision, chosen.compile))
    return config.model_copy(update={"precision": precision, "compile": compile}), note


def write_head(config: Config, folder: RunFolder, dataset: Dataset) -> None:
    """Writes what describes the run: config.yaml, and data.json unless it is resumed."""
    folder.create()
    folder.write_config(config)
    if not checkpoints(folder.checkpoints) or not folder.data.is_file():
        dataset.describe().write(folder.data)


def make_measure(config: Config, dataset: Dataset) -> Measure:
    """What evaluates the weights during training: a distance, by the run's default sampler.

    Only the first process prepares it.
    """
    if processes.index() > 0:
        return lambda weights, device: {}
    decode = make_decoder(dataset.encoder, dataset.scaling, default_device())
    scoring = make_scoring(config, dataset.encoder, decode, baseline=False, scaling=dataset.scaling)
    scorer = scoring.scorer
    num, (sampler, nfe) = config.evaluate.num_while_training, config.default_sampler

    def measure(weights: dict[str, Tensor], device: torch.device) -> dict[str, float]:
        model = load_model(config, weights, device, decode)
        labels, cond, _ = scoring.draw_inputs(None, num, model)
        samples = draw(model, num, labels, sampler, nfe, seed=0, device=device, cond=cond)
        return {scorer.features.metric: scorer.distance(scorer.gather(samples, num))}

    return measure


def picture_decoder(dataset: Dataset) -> Decode:
    """The decoder for pictures during training; without its autoencoder they show latents."""
    decode = make_decoder(dataset.encoder, dataset.scaling, default_device())
    try:
        if isinstance(decode, Decoder):
            _ = decode.loaded  # loads it
    except InputError as error:
        log.warning(f"{error}; until then samples/ shows the first three channels of latents")
        return unchanged
    return decode


def draw_samples(
    config: Config,
    folder: RunFolder,
    step: int,
    model: FlowModel,
    device: torch.device,
    dataset: Dataset | None = None,
) -> None:
    """Writes a picture of samples: images and signals with one column per class, or points.

    All but images are drawn with the names and, if there are more than two columns, the first
    samples of the data. Samples with conditions have those of the data; images are drawn beside
    them and the real images.
    """
    file = folder.samples / f"step-{step:08d}.png"
    if dataset is not None and dataset.cond is not None:
        write_bytes(file, png(picture_of_pairs(config, model, device, dataset)))
        return
    classes = config.data.num_classes
    if len(config.data.shape) == 1:
        num, columns = POINTS, 1
    else:
        columns = min(classes or 8, 10)
        num, classes = columns * ceil(40 / columns), min(classes, columns)
    labels = class_by_class(num, classes)
    if len(config.data.shape) == 1 and dataset is not None and dataset.labels is not None:
        labels = as_frequent(dataset.labels, num, classes)
    sampler, nfe = config.default_sampler
    samples = sample_many(model, num, labels, sampler, nfe, 0, batch_size=num, device=device)
    names: tuple[str, ...] = ()
    real: Tensor | None = None
    if dataset is not None and dataset.encoder is None:
        names = column_names(config.data.shape, dataset.scaling)
        if names and config.data.shape != (2,):
            real = model.decode(dataset.samples(slice(num)).to(device)).cpu()
    write_bytes(file, png(picture(samples, columns, names, real)))


def picture_of_pairs(
    config: Config, model: FlowModel, device: torch.device, dataset: Dataset
) -> Image.Image:
    """Samples with conditions of the data, as a picture."""
    shape = config.data.shape
    num = POINTS if len(shape) == 1 else ROWS * PAIRS
    drawn = draw_pairs(model, dataset, num, config.default_sampler, device)
    return paired(*drawn, column_names(shape, dataset.scaling))

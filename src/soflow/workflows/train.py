"""Trains a recipe in a run folder."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.assemble import (
    is_built_in,
    make_augment,
    make_model,
    make_network,
    make_objective,
    null_trained,
)
from soflow.config import Config, read_recipe
from soflow.config.checks import narrow_tokens, small_ratio
from soflow.config.own import OWN
from soflow.config.reading import keys_of, with_overrides
from soflow.data import own
from soflow.data.autoencoder import Decoder
from soflow.data.dataset import DataRecord, Dataset
from soflow.data.sources import require_path_is_read
from soflow.data.training_data import completed, make_dataset, summary
from soflow.drawing import draw
from soflow.errors import InputError
from soflow.evaluation.features import check_name
from soflow.evaluation.references import make_scoring
from soflow.interop.pretrained import load_pretrained
from soflow.objectives.base import Objective
from soflow.run.checkpoint import TrainState, checkpoints
from soflow.run.folder import RunFolder
from soflow.run.lock import only_trainer_of
from soflow.run.resume import changed_settings, keep_older, require_same_data
from soflow.solution import FlowModel, unchanged
from soflow.system import processes
from soflow.system.devices import default_device
from soflow.system.isolation import isolated, random_state_kept
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, track
from soflow.training.automatic import resolve
from soflow.training.callbacks import Callback, require_callbacks
from soflow.training.compile import compiled
from soflow.training.distributed import (
    lost_processes_explained,
    require_plain_launch,
    same_everywhere,
)
from soflow.training.memory import TOO_LARGE
from soflow.training.optimizers import require_optimizer, small_muon_share
from soflow.training.periodic import Measure
from soflow.training.signals import Stopped
from soflow.training.trackers import require_trackers
from soflow.training.trainer import Trainer
from soflow.workflows.load import Decode, load_model, make_decoder
from soflow.workflows.network_contract import require_contract
from soflow.workflows.own_parts import (
    own_network_of,
    remember,
    require_unchanged,
    with_its_name,
    with_network,
    with_objective,
    without_objective,
)
from soflow.workflows.resume import require_resumable, resume_run, settings_of
from soflow.workflows.sample_grid import draw_samples

log = logging.getLogger(__name__)


@isolated
@random_state_kept()
def train(
    recipe: str | Path | Config,
    out: str | Path,
    overrides: Sequence[str] = (),
    progress: Progress = track,
    *,
    data: Any = None,
    network: nn.Module | None = None,
    objective: Objective | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunFolder:
    """Trains a recipe in a run folder, or resumes the run in the folder.

    A resumed run keeps its settings. Some settings can change, if they are set in `overrides`.
    For example, train.steps=N trains a finished run further. history.jsonl records each change.

    Args:
        recipe: The name of an included recipe, a YAML file, a run folder, or a configuration.
        out: The run folder.
        overrides: Changes to the recipe or configuration, such as "train.steps=2000".
        progress: Shows the progress: `soflow.track` shows a bar or lines on stderr, `soflow.silent`
            shows only warnings. A custom function with the same signature also works.
        data: Custom data instead of the recipe's: a tensor or an array (N, ...); a pair (x, y) of
            samples (N, ...) and labels (N,); a dictionary of arrays `image` or `data`, `label` and
            `cond`; a torch dataset with `__len__`, whose items are samples, pairs (sample, label)
            or such dictionaries; or a `datasets.Dataset`. Its shape and classes replace those of
            the recipe. data.num_classes=0 ignores labels, data.cond_column= ignores conditions.
            Images (1 or 3 channels) without negative values are scaled to [-1, 1] from their usual
            range, such as [0, 1] or [0, 255]. Other images are not scaled and should be in [-1, 1].
            Vectors and signals are standardized, unless they change at every access, as with random
            transforms. data.range=[low,high] sets the range that is scaled to [-1, 1].
            To resume, pass the same data again.
        network: A custom network instead of the recipe's: a module with the signature
            net(x, t, s, labels), where x is (B, ...), t, s and labels are (B,), and the result has
            the shape of x. Training starts from a copy of its weights and does not change the
            network. To resume or load the run in another process, pass the network again.
        objective: An objective instead of the recipe's: a custom one, or one of soflow's with its
            settings. To resume, pass the same objective again.
        callbacks: `Callback` objects, whose methods are called during training.

    Returns:
        The run folder, for `soflow.load`.

    Raises:
        InputError: If settings are invalid, or differ from the settings the run started with.
        RunError: If another process trains in the folder, a loss or gradient is not finite, or a
            checkpoint cannot be written.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
        SystemExit: After SIGTERM, once a checkpoint is written.

    Example:
        >>> import soflow
        >>> settings = ["train.steps=2", "train.batch_size=8", "network.width=16"]
        >>> run = soflow.train("moons", "runs/mine", settings, progress=soflow.silent)
        >>> soflow.load("runs/mine").sample(5, progress=soflow.silent).shape
        torch.Size([5, 2])
    """
    config = recipe if isinstance(recipe, Config) else read_recipe(recipe)
    given, callbacks = keys_of(overrides), list(callbacks)
    require_callbacks(callbacks)
    if network is not None:
        require_unchanged("network", given)
        config = with_network(config, network)
    if objective is not None:
        require_unchanged("objective", given)
        config = without_objective(config)
    config = with_overrides(config, overrides)
    if data is not None:
        own.require_unnamed(given)
        with own.given(data, config) as config:
            return train(
                config, out, overrides, progress,
                network=network, objective=objective, callbacks=callbacks,
            )  # fmt: skip
    folder = RunFolder(Path(out).expanduser())
    if objective is not None:
        config = with_objective(config, objective)
    parts = Parts(network, objective, callbacks)
    folder.require_no_comparison()
    require_resumable(folder)
    require_own_data(config, folder)
    require_plain_launch()
    require_trackers(config.train.trackers)
    require_optimizer(config)
    if "data.path" in given:
        require_path_is_read(config.data)
    if network is None:
        require_sizes(config)
    dataset = training_data(config, folder)
    config = completed(config, dataset)
    if network is not None:
        config = with_its_name(config, network)
    if (size := config.train.batch_size) > len(dataset):
        count = f"{len(dataset)} samples"
        raise InputError(f"train.batch_size={size} is larger than the dataset ({count}): reduce it")
    first = processes.index() == 0
    with only_trainer_of(folder.path) if first else nullcontext(), lost_processes_explained():
        started = settings_of(folder)
        config, note = chosen_settings(config, started, given)
        changed = changed_settings(started, config, given, folder) if started else []
        with out_of_memory_explained(TOO_LARGE):
            trainer = make_trainer(config, folder, dataset, progress, parts, started is not None)
        try:
            if started is not None:
                resume_run(trainer, started, changed, write=first)
            if first:
                write_head(config, folder, dataset)
            for line in summary(config.data, dataset):
                log.info(f"data: {line}")
            if note:
                log.info(note)
            muon = small_muon_share(config.optimizer, trainer.network)
            for warning in filter(None, (narrow_tokens(config), small_ratio(config), muon)):
                log.warning(warning)
            if started is not None and trainer.state.step >= config.train.steps:
                steps = f"{trainer.state.step:,} of {config.train.steps:,} steps"
                log.info(f"already finished ({steps}): to train further, set train.steps=N")
            trainer.run()
        except BaseException as error:
            # After other errors, closing would wait forever for processes that have failed.
            if isinstance(error, Stopped) or trainer.accelerator.num_processes == 1:
                trainer.close()
            raise
        trainer.close()
    return folder


@dataclass(frozen=True)
class Parts:
    """Objects passed from Python."""

    network: nn.Module | None = None
    objective: Objective | None = None
    callbacks: Sequence[Callback] = ()


def require_sizes(config: Config) -> None:
    """Checks the sizes of a built-in network before the data is read, which can take long.

    Raises:
        InputError: If sizes do not fit together.
    """
    channels, *sizes = config.data.shape
    if is_built_in(config) and -1 not in sizes and (sizes or channels != -1):
        shape = (3 if channels == -1 else channels, *sizes)
        known = {"shape": shape, "num_classes": max(0, config.data.num_classes)}
        data = config.data.model_copy(update=known)
        with torch.device("meta"):
            make_network(config.model_copy(update={"data": data}))


def require_own_data(config: Config, folder: RunFolder) -> None:
    """Raises InputError if a run on data passed from Python is resumed without the data."""
    started = bool(checkpoints(folder.checkpoints)) and folder.config.is_file()
    if started and config.data.source != own.NAME == folder.read_config().data.source:
        raise InputError(own.MISSING)


def training_data(config: Config, folder: RunFolder) -> Dataset:
    """The training data. For a resumed run, errors explain that it needs the same data."""
    try:
        return make_dataset(config.data)
    except InputError as error:
        if not checkpoints(folder.checkpoints) or config.data.source == own.NAME:
            raise
        raise InputError(
            f"{folder.path} needs the same data to resume: run soflow train {folder.path}, "
            "set data.path=PATH if the data have moved, or start a new run with --out and "
            f"init_from={folder.path} ({error})"
        ) from None


def make_trainer(
    config: Config,
    folder: RunFolder,
    dataset: Dataset,
    progress: Progress,
    parts: Parts,
    resumed: bool,
) -> Trainer:
    """The trainer of a run, with the state of the newest checkpoint."""
    if resumed and (data := DataRecord.read(folder.data)) is not None:
        require_same_data(data, dataset.describe(), folder)
    own_network = own_network_of(config, folder.path, parts.network)
    torch.manual_seed(config.train.seed)
    network = make_network(config, own_network)
    if own_network is not None:
        require_contract(network, config, null_trained(config, dataset.describe()))
    if config.init_from and not resumed:
        source, names = Path(config.init_from).expanduser(), dataset.class_names
        for note in load_pretrained(network, source, config.init_time, names, config.data.shape):
            log.info(note)

    decode = picture_decoder(dataset)
    check_name(config.evaluate.features)
    measure = make_measure(config, dataset, own_network) if config.evaluate.every else None

    def draw_grid(
        state: TrainState, weights: dict[str, Tensor], device: torch.device
    ) -> tuple[FlowModel, Path]:
        model = load_model(config, weights, device, decode, own=own_network)
        return model, draw_samples(config, folder, state.step, model, device, dataset)

    model, augment = make_model(config, network), make_augment(config)
    objective = parts.objective
    if objective is None or config.objective.name != OWN:
        objective = make_objective(config, compiled if config.compile else None)
    trainer = Trainer(
        model, objective, dataset, augment, config, folder, progress, draw_grid, measure,
        parts.callbacks,
    )  # fmt: skip
    if own_network is not None:
        remember(folder.path, own_network)
    return trainer


def chosen_settings(
    config: Config, started: Config | None, given: Sequence[str]
) -> tuple[Config, str]:
    """The configuration with resolved `precision` and `compile`, and a note about the choice.

    A resumed run keeps its choice. Otherwise, and if "auto" is set explicitly, the choice depends
    on the machine.
    """
    config = keep_older(config, started, given)
    if started is not None:
        anew = {name: "auto" for name in ("precision", "compile") if name in given}
        started = started.model_copy(update=anew)
    chosen, note = resolve(config, default_device(), started)
    precision, compile = same_everywhere((chosen.precision, chosen.compile))
    return config.model_copy(update={"precision": precision, "compile": compile}), note


def write_head(config: Config, folder: RunFolder, dataset: Dataset) -> None:
    """Writes config.yaml, and data.json unless the run is resumed."""
    folder.create()
    folder.write_config(config)
    if not checkpoints(folder.checkpoints) or not folder.data.is_file():
        dataset.describe().write(folder.data)


def make_measure(config: Config, dataset: Dataset, own: nn.Module | None) -> Measure:
    """A function that evaluates weights during training: the distance of samples from real data.

    The samples are drawn with the default sampler of the run. Only the first process evaluates.
    """
    if processes.index() > 0:
        return lambda weights, device: {}
    decode = make_decoder(dataset.encoder, dataset.scaling, default_device())
    scoring = make_scoring(config, dataset.encoder, decode, baseline=False, scaling=dataset.scaling)
    scorer = scoring.scorer
    num, (sampler, nfe) = config.evaluate.num_while_training, config.default_sampler

    def measure(weights: dict[str, Tensor], device: torch.device) -> dict[str, float]:
        model = load_model(config, weights, device, decode, own=own)
        labels, cond, _ = scoring.draw_inputs(None, num, model)
        samples = draw(model, num, labels, sampler, nfe, seed=0, device=device, cond=cond)
        return {scorer.features.metric: scorer.distance(scorer.gather(samples, num))}

    return measure


def picture_decoder(dataset: Dataset) -> Decode:
    """The decoder for pictures during training. Without an autoencoder, pictures show latents."""
    decode = make_decoder(dataset.encoder, dataset.scaling, default_device())
    try:
        if isinstance(decode, Decoder):
            _ = decode.loaded  # reading the property loads the autoencoder
    except InputError as error:
        log.warning(f"{error}; until it is available, pictures show three channels of the latents")
        return unchanged
    return decode

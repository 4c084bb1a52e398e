"""Evaluation: of a run, or of samples in files or in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from soflow.config import Config
from soflow.data import own
from soflow.data.load import load_data
from soflow.drawing import asked_guidance
from soflow.errors import InputError
from soflow.evaluation.evaluate import EvaluationSettings, evaluate_sample_set
from soflow.evaluation.evaluate import evaluate as evaluate_models
from soflow.evaluation.features import NAMES
from soflow.evaluation.record import Evaluation
from soflow.evaluation.references import make_sample_scoring, make_scoring
from soflow.evaluation.sample_set import open_samples, samples_in_memory
from soflow.run.folder import RunFolder, evaluation_file, find_run
from soflow.sampling import Sampler
from soflow.symbols import AnyLabels, as_labels
from soflow.system.isolation import isolated, random_state_kept
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, track
from soflow.workflows.load import Run, load


@isolated
@random_state_kept()
def evaluate(
    run: str | Path | Run,
    settings: EvaluationSettings | None = None,
    progress: Progress = track,
    data: Any = None,
) -> Evaluation:
    """Evaluates a run.

    Args:
        run: Its folder, a checkpoint in it, or a loaded run, with the weights it has.
        settings: What to evaluate, and against what.
        progress: Shows how much is done.
        data: What the run was trained on, if that was given in Python.

    Returns:
        The figures with their protocol. `write_evaluation` writes them into the run's folder.

    Raises:
        InputError: If there is no run, or a setting does not suit it.
        RunError: If the checkpoint is damaged, or a sample holds NaN or infinity.

    Example:
        >>> import soflow
        >>> settings = soflow.EvaluationSettings(nfe=(1, 2), num=100, weights=("ema",))
        >>> found = soflow.evaluate("runs/moons", settings, progress=soflow.silent)
        >>> [(row.sampler, row.nfe) for row in found.rows]
        [('renoise', 1), ('renoise', 2), ('ode', 2), ('heun', 64)]
    """
    settings = settings or EvaluationSettings()
    if data is not None:
        config = run.config if isinstance(run, Run) else find_run(Path(run))[0].read_config()
        with own.given(data, config):
            return evaluate(run, settings, progress)
    if isinstance(run, Run):
        loaded: dict[str, Run] = {run.weights: run}
    else:
        one, *others = settings.weights
        loaded = {one: load(run, one, vae=settings.vae)}
        place = loaded[one].checkpoint.path  # all weights are of one checkpoint
        loaded |= {name: load(place, name, vae=settings.vae) for name in others}
    first = next(iter(loaded.values()))
    config, decode, defaults = first.config, first.model.decode, first.config.evaluate
    samplers = chosen_samplers(settings.samplers, config)
    asked_guidance(first.model, settings.guidance, settings.guidance_interval)  # before any work
    features, reference = settings.features, settings.reference
    if isinstance(reference, Path):
        reference = str(reference)
    elif not isinstance(reference, str):
        reference = load_data(reference)
    if not features and (program := defaults.features) not in NAMES:
        raise InputError(
            f"the run names a program, evaluate.features={program}: give --features if you trust it"
        )
    scoring = make_scoring(
        config, first.encoder, decode, features, reference, settings.baseline, first.scaling
    )
    nfe, num = settings.nfe or tuple(defaults.nfe), settings.num or defaults.num
    models = {name: one.model for name, one in loaded.items()}
    settings = replace(settings, nfe=nfe, num=num)
    advice = f"draw fewer samples at once, --batch (now {settings.batch}), or fewer in all, --num"
    with out_of_memory_explained(advice):
        found = evaluate_models(models, samplers, scoring, settings, first.device, progress)
    return found.model_copy(update={"checkpoint": first.checkpoint.path.name})


@isolated
@random_state_kept()
def evaluate_samples(
    samples: str | Path | Tensor | np.ndarray,
    features: str,
    reference: Any,
    baseline: bool = False,
    progress: Progress = track,
    labels: AnyLabels = None,
) -> Evaluation:
    """Evaluates samples of any origin.

    Args:
        samples: A folder of images, an .npz in ADM's layout, or a data set, SOURCE[:SPLIT]; or
            samples in memory (N, ...): images (N, C, H, W) as floats in -1 to 1 or as bytes, other
            samples in their own units.
        features: By name, or a TorchScript file.
        reference: Real data, SOURCE[:SPLIT], or a file of statistics; or data in Python, as
            `soflow.train` takes them.
        baseline: Whether to score another split of the real data, too.
        progress: Shows how much is done.
        labels: Of samples in memory, the classes that they were drawn for, (N,).

    Returns:
        The figures with their protocol.

    Raises:
        InputError: If samples, features and reference do not fit each other.
        RunError: If a file is damaged, or a sample holds NaN or infinity.

    Example:
        >>> import soflow, torch
        >>> samples, real = torch.randn(200, 2), torch.randn(300, 2) + 1.0
        >>> found = soflow.evaluate_samples(
        ...     samples, "coordinates", real, progress=soflow.silent
        ... )
        >>> found.rows[0].distance > 0
        True
    """
    if isinstance(samples, str | Path):
        if labels is not None:
            raise InputError("labels are of samples in memory: files have labels of their own")
        given, name = open_samples(str(samples)), Path(samples).name
    else:
        given, name = samples_in_memory(samples, as_labels(labels)), "in memory"
    if not isinstance(reference, str | Path):
        reference = load_data(reference)
    scoring = make_sample_scoring(given, features, reference, baseline)
    return evaluate_sample_set(given, name, scoring, progress)


def chosen_samplers(chosen: tuple[Sampler, ...], config: Config) -> tuple[Sampler, ...]:
    """The samplers that suit the run's objective, or those of them that are chosen."""
    known = config.samplers
    for name in chosen:
        if name not in known:
            raise InputError(
                f"the sampler '{name}' does not suit a run by {config.objective.name}: "
                f"choose {' or '.join(known)}"
            )
    return tuple(name for name in known if not chosen or name in chosen)


def write_evaluation(folder: RunFolder, evaluation: Evaluation) -> Path:
    """Writes the evaluation into the run's folder and returns the file."""
    file = evaluation_file(folder, evaluation.checkpoint)
    evaluation.write(file)
    return file

"""Evaluation of a run, or of samples in files or in memory."""

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
from soflow.sampling import HEUN_STEPS, SAMPLERS, Sampler
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
    """Evaluates a run: draws samples and compares them with real data.

    Args:
        run: A run folder, a checkpoint in it, or a loaded run. A loaded run is evaluated with the
            weights it was loaded with.
        settings: The samplers, numbers of samples, features and reference of the evaluation. By
            default, the settings of the run.
        progress: Shows the progress.
        data: The training data, if it was passed to `soflow.train` in Python.

    Returns:
        The results with their protocol. Their method `write(file)` saves them as JSON.

    Raises:
        InputError: If the run does not exist, or a setting does not fit it.
        RunError: If the checkpoint is damaged, or a sample contains NaN or infinity.

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
        for name, fits in (("vae", not settings.vae), ("weights", run.weights in settings.weights)):
            if not fits:
                raise InputError(
                    f"{name} cannot be changed on a loaded run: pass {name} to soflow.load instead"
                )
        loaded: dict[str, Run] = {run.weights: run}
    else:
        one, *others = settings.weights
        loaded = {one: load(run, one, vae=settings.vae)}
        place = loaded[one].checkpoint.path  # all weights come from the same checkpoint
        loaded |= {name: load(place, name, vae=settings.vae) for name in others}
    first = next(iter(loaded.values()))
    config, decode, defaults = first.config, first.model.decode, first.config.evaluate
    samplers = chosen_samplers(settings.samplers, config)
    if (settings.nfe or settings.times) and set(samplers) == {"heun"}:
        raise InputError(
            f"nfe and times have no effect with heun, which takes {2 * HEUN_STEPS} evaluations: "
            "leave them out"
        )
    asked_guidance(first.model, settings.guidance, settings.guidance_interval)  # before any work
    features, reference = settings.features, settings.reference
    if isinstance(reference, Path):
        reference = str(reference)
    elif not isinstance(reference, str):
        reference = load_data(reference)
    if not features and (program := defaults.features) not in NAMES:
        raise InputError(
            f"the run has evaluate.features={program}, which is a program: if you trust it, also "
            f"pass it as features (--features {program})"
        )
    scoring = make_scoring(
        config, first.encoder, decode, features, reference, settings.baseline, first.scaling,
        first.device,
    )  # fmt: skip
    nfe, num = settings.nfe or tuple(defaults.nfe), settings.num or defaults.num
    models = {name: one.model for name, one in loaded.items()}
    settings = replace(settings, nfe=nfe, num=num)
    advice = f"reduce the batch size, --batch (now {settings.batch_size}), or --num"
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
    """Evaluates samples from any generator.

    Args:
        samples: A folder of images, an .npz file in the format of ADM (guided-diffusion), or a
            dataset as SOURCE[:SPLIT]; or samples in memory, (N, ...): images (N, C, H, W) as floats
            in [-1, 1] or as bytes, other samples in the units of the data.
        features: The network that computes features: a name, such as "inception", or a TorchScript
            file.
        reference: The real data: SOURCE[:SPLIT], a file of statistics, or data in Python as
            `soflow.train` accepts it.
        baseline: Whether to also score held-out real data: another split, or a tenth of the
            reference compared with the rest.
        progress: Shows the progress.
        labels: The classes of samples in memory, (N,).

    Returns:
        The results with their protocol.

    Raises:
        InputError: If samples, features and reference do not fit together.
        RunError: If a file is damaged, or a sample contains NaN or infinity.

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
            raise InputError("labels apply to samples in memory only: files contain their labels")
        given, name = open_samples(str(samples)), Path(samples).name
    else:
        given, name = samples_in_memory(samples, as_labels(labels)), "in memory"
    if not isinstance(reference, str | Path):
        reference = load_data(reference)
    scoring = make_sample_scoring(given, features, reference, baseline)
    return evaluate_sample_set(given, name, scoring, progress)


def chosen_samplers(chosen: tuple[Sampler, ...], config: Config) -> tuple[Sampler, ...]:
    """The chosen samplers; by default, all that work with the objective of the run."""
    for name in chosen:
        config.require_sampler(name)
    order = dict.fromkeys((*config.samplers, *SAMPLERS))
    return tuple(name for name in order if name in (chosen or config.samplers))


def write_evaluation(folder: RunFolder, evaluation: Evaluation) -> Path:
    """Writes the evaluation to the run folder and returns the file."""
    file = evaluation_file(folder, evaluation.checkpoint)
    evaluation.write(file)
    return file

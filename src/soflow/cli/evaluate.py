"""`soflow evaluate`: figures of a trained run, with what real data reaches beside them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from soflow.cli.options import MOST_SAMPLES, at_least, between, whole_numbers
from soflow.errors import InputError


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint inside it.")],
    nfe: Annotated[
        str | None, typer.Option(help="Network evaluations a sample, e.g. 1,2,4 (default: the recipe's).")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Samples to draw (default: the recipe's).")] = None,
    features: Annotated[str | None, typer.Option(help="digits, classifier or coordinates (default: the recipe's).")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Data to compare with, a path or a name, and :SPLIT (default: the training data)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    vae: Annotated[str, typer.Option(help="The autoencoder that decodes latents (default: the one that made them).")] = "",
) -> None:
    """Evaluate a trained run: a table, and evaluation.json in the run folder."""
    counts = None if nfe is None else [at_least(n, 1, "--nfe") for n in whole_numbers(nfe, "--nfe")]
    if num is not None:
        between(num, 2, MOST_SAMPLES, "--num")
    at_least(seed, 0, "--seed")

    from soflow import runs
    from soflow.evaluation.evaluate import Judge, rows_of
    from soflow.evaluation.evaluate import evaluate as evaluate_model
    from soflow.evaluation.features import DigitClassifier, accuracy, load_features
    from soflow.progress import counting

    def note(text: str) -> None:
        typer.echo(text, err=True)

    loaded = runs.load(run, vae=vae)
    for remark in loaded.notes:
        note(remark)
    config = loaded.config.evaluate
    counts, num = counts or list(config.nfe), num or config.num
    compared, held_out, points = runs.real_data(loaded.config, loaded.encoder, loaded.model.decode, note, reference or "")
    if loaded.encoder is None and compared.shape != loaded.model.shape:
        raise InputError(
            f"--reference {reference} has samples of shape {list(compared.shape)}, the run {list(loaded.model.shape)}"
        )
    chosen = load_features(features or config.features, held_out if held_out.split == "train" else compared, note)
    judge = Judge(chosen, compared)
    if isinstance(judge.features, DigitClassifier):
        print(f"digit classifier: test accuracy {accuracy(judge.features):.4f} on held-out real digits")

    samplers = loaded.config.objective.samplers
    with counting("evaluating", num * len(rows_of(samplers, counts))) as on_batch:
        results = evaluate_model(loaded.model, samplers, judge, held_out, counts, num, seed, loaded.device, on_batch, points)
    if isinstance(judge.features, DigitClassifier):
        results["classifier_test_accuracy"] = accuracy(judge.features)
    results = {"checkpoint": loaded.checkpoint.path.name, "weights": "ema", **results}
    loaded.folder.write_evaluation(results)
    show(results)
    print(f"written: {loaded.folder.evaluation}")


def show(results: dict[str, Any]) -> None:
    """The results as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from soflow.evaluation.evaluate import reading_aid, table

    header, *rows = table(results)
    title = f"{results['metric']} of {results['num']} samples to {results['reference']['count']} real ones"
    shown = Table(title=title)
    for i, column in enumerate(header):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    console.print(reading_aid(results), highlight=False)
    for name, value in results["diagnostics"].items():
        console.print(f"{name.replace('_', ' ')}: {value:.4f}", highlight=False)

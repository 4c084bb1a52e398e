"""`soflow sample`: draw from a trained run, into a picture, an .npz or a folder of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soflow.cli.options import MOST_SAMPLES, at_least, between, whole_numbers
from soflow.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint inside it.")],
    num: Annotated[int, typer.Option(help="How many samples.")] = 64,
    nfe: Annotated[
        int | None, typer.Option(help="Network evaluations a sample (default: 1; 64 after flow matching).")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="renoise, ode, euler or heun (default: that of the method it was trained by).")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Classes to draw, taken in turn: 0,1,2 (default: all).")] = None,
    seed: Annotated[int, typer.Option(help="Sample i depends on the seed and i alone.")] = 0,
    weights: Annotated[str, typer.Option(help="ema (averaged) or raw.")] = "ema",
    out: Annotated[
        Path | None,
        typer.Option(
            help="FILE.png, FILE.npz (arr_0: uint8 images or points, arr_1: labels) or a folder (default: in RUN/samples)."
        ),
    ] = None,
) -> None:
    """Draw samples from a trained run."""
    between(num, 1, MOST_SAMPLES, "--num")
    at_least(1 if nfe is None else nfe, 1, "--nfe")
    at_least(seed, 0, "--seed")
    classes = None if labels is None else whole_numbers(labels, "--labels")
    if weights not in ("ema", "raw"):
        raise InputError(f"--weights is '{weights}': choose ema or raw")

    from soflow import runs
    from soflow.cli.progress import counting
    from soflow.pictures import is_image
    from soflow.sampling import check_method, sample_many

    if method is not None:
        check_method(method, nfe or (2 if method == "heun" else 1))
    loaded = runs.load(run, "raw" if weights == "raw" else "ema")
    if method is None and nfe is None:
        sampler, nfe = loaded.config.drawing
    else:
        nfe = nfe or (2 if method == "heun" else 1)
        sampler = check_method(method or loaded.config.objective.samplers[0], nfe)
    for note in loaded.notes:
        typer.echo(note, err=True)
    chosen = choose_labels(classes, num, loaded.model.num_classes)
    file = out or loaded.folder.samples / f"{loaded.checkpoint.path.name}-{sampler}-{nfe}-seed-{seed}.png"
    if file.suffix == "" and not is_image(loaded.model.shape):
        raise InputError("a folder of images needs images: use --out FILE.npz for these samples")
    check_writable(file)
    with counting("sampling", num) as on_batch:
        samples = sample_many(loaded.model, num, chosen, sampler, nfe, seed, device=loaded.device, on_batch=on_batch)
    write(samples, chosen, file)
    print(f"{num} samples, {sampler} in {nfe}: {file}")


def choose_labels(classes: list[int] | None, num: int, num_classes: int) -> Tensor | None:
    """One label a sample, the chosen classes in turn. Raises InputError for a label that is no class."""
    import torch

    from soflow.sampling import class_by_class

    if classes is None:
        return class_by_class(num, num_classes)
    if not num_classes:
        raise InputError("--labels was given, but this run was trained without classes: leave it out")
    for label in classes:
        if not 0 <= label < num_classes:
            raise InputError(f"--labels names {label}: the classes are 0 to {num_classes - 1}")
    return torch.tensor(classes).repeat(-(-num // len(classes)))[:num]


def check_writable(file: Path) -> None:
    """Raises InputError before any work where the output could not be written."""
    if file.suffix not in (".png", ".npz", ""):
        raise InputError(f"--out is {file}: it must end in .png or .npz, or be a folder")
    folder = file if file.suffix == "" else file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another place with --out") from None
    if not os.access(folder, os.W_OK) or file.is_dir() != (file.suffix == ""):
        raise InputError(f"cannot write {file}: no permission, or a folder of that name; choose another place with --out")


def write(samples: Tensor, labels: Tensor | None, file: Path) -> None:
    """A grid or scatter (.png), the arrays in ADM's layout (.npz: arr_0, arr_1), or one PNG a sample (folder)."""
    import numpy as np

    from soflow.pictures import is_image, save_picture, to_pil, to_uint8

    images = is_image(samples.shape[1:])
    if file.suffix == ".png":
        save_picture(samples, file, columns=max(1, min(10, len(samples))))
    elif file.suffix == ".npz":
        arrays: dict[str, Any] = {"arr_0": to_uint8(samples) if images else samples.numpy()}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        partial = file.with_name(f".{file.name}.partial.npz")
        np.savez(partial, **arrays)
        os.replace(partial, file)
    else:
        for i, image in enumerate(to_uint8(samples)):
            to_pil(image).save(file / f"{i:06d}.png")

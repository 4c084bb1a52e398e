"""`soflow sample`: draw from a trained run, into a picture, an .npz or a folder of images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soflow.cli.options import MOST_SAMPLES, at_least, between, one_of
from soflow.errors import InputError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint inside it.")],
    num: Annotated[int, typer.Option("--num", "-n", help="How many samples.")] = 64,
    nfe: Annotated[
        int | None,
        typer.Option(help="Network evaluations a sample (default: 1; 64 after flow matching)."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="renoise, ode, euler or heun (default: that of the method it was trained by)."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes to draw in turn, by number or name, which may have commas itself: 0,1,2 (default: all)."
        ),
    ] = None,
    draw: Annotated[
        str, typer.Option(help="balanced: classes in turn; random: each drawn by (seed, i).")
    ] = "balanced",
    seed: Annotated[int, typer.Option(help="Sample i depends on the seed and i alone.")] = 0,
    weights: Annotated[str, typer.Option(help="ema (averaged) or raw.")] = "ema",
    vae: Annotated[
        str,
        typer.Option(
            help="The autoencoder that decodes latents (default: the one that made them)."
        ),
    ] = "",
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
    one_of(weights, ("ema", "raw"), "--weights")
    one_of(draw, ("balanced", "random"), "--draw")
    if labels is not None and draw == "random":
        raise InputError(
            "--labels names the classes to draw in turn: leave it out, or --draw random"
        )

    from soflow.evaluation.pictures import is_image
    from soflow.sampling import check_sampler, random_classes
    from soflow.system.progress import counting
    from soflow.workflows.load import load
    from soflow.workflows.sample import sample_to_file

    if method is not None:
        check_sampler(method, nfe or (2 if method == "heun" else 1))
    loaded = load(run, "raw" if weights == "raw" else "ema", vae=vae)
    if method is None and nfe is None:
        sampler, nfe = loaded.config.default_sampler
    else:
        nfe = nfe or (2 if method == "heun" else 1)
        sampler = check_sampler(method or loaded.config.samplers[0], nfe)
    names = loaded.class_names
    chosen = (
        random_classes(num, len(names), seed)
        if draw == "random"
        else choose_labels(labels, num, names)
    )
    file = (
        out
        or loaded.folder.samples / f"{loaded.checkpoint.path.name}-{sampler}-{nfe}-seed-{seed}.png"
    )
    if file.suffix == "" and loaded.encoder is None and not is_image(loaded.model.shape):
        raise InputError("a folder of images needs images: use --out FILE.npz for these samples")
    check_writable(file)
    with counting("sampling", num) as on_done:
        drawn = labels or draw if names else "none"
        whole = sample_to_file(
            loaded, file, num, chosen, sampler, nfe, seed, on_done, {"labels": drawn}
        )
    if whole:
        print(f"{num} samples, {sampler} in {nfe}: {file}")


def choose_labels(text: str | None, num: int, names: Sequence[str]) -> Tensor | None:
    """One label a sample, the chosen classes in turn: their names or numbers, with commas between.

    Raises InputError for one that is no class.
    """
    import torch

    from soflow.sampling import class_by_class

    if text is None:
        return class_by_class(num, len(names))
    if not names:
        raise InputError(
            "--labels was given, but this run was trained without classes: leave it out"
        )
    labels = torch.tensor(class_numbers(text, names))
    return labels.repeat(-(-num // len(labels)))[:num]


def class_numbers(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes in a list. Where names have commas themselves, as many parts as make a name are one.

    Names count as they are spelled, or else in another case; what is no name may be a number.
    """
    spelled, folded = called_so(names), called_so([name.casefold() for name in names])
    longest = max(name.count(",") for name in names) + 1
    parts, chosen = tidy(text).split(", "), []
    while parts:
        for count in range(min(longest, len(parts)), 0, -1):
            head = ", ".join(parts[:count])
            number = class_number(head, names, spelled.get(head) or folded.get(head.casefold(), []))
            if number is not None:
                break
        else:
            raise InputError(f"--labels names {parts[0]}: {known(names)}{near(parts[0], names)}")
        chosen.append(number)
        parts = parts[count:]
    return chosen


def called_so(names: Sequence[str]) -> dict[str, list[int]]:
    """Name -> the classes called so."""
    called: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        called.setdefault(tidy(name), []).append(number)
    return called


def class_number(text: str, names: Sequence[str], found: Sequence[int]) -> int | None:
    """The one class `found` by this name, or that of this number; None without either. Raises InputError for several."""
    if len(found) > 1:
        several = " and ".join(f"{names[number]} ({number})" for number in found)
        raise InputError(
            f"--labels names {text}: the classes {several} are called so: give the number"
        )
    if found:
        return found[0]
    return int(text) if text.isdecimal() and int(text) < len(names) else None


def tidy(text: str) -> str:
    """With one space after each comma."""
    return ", ".join(part.strip() for part in text.split(","))


def near(text: str, names: Sequence[str]) -> str:
    """The classes of which the name is close, as a question."""
    folded = [name.casefold() for name in names]
    close = get_close_matches(text.casefold(), folded, n=3)
    return (
        f"; did you mean {' or '.join(names[folded.index(one)] for one in close)}?" if close else ""
    )


def known(names: Sequence[str]) -> str:
    """The classes, in a line."""
    numbered = f"the classes are 0 to {len(names) - 1}"
    if all(name == str(number) for number, name in enumerate(names)):
        return numbered
    return f"{numbered}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def check_writable(file: Path) -> None:
    """Raises InputError before any work where the output could not be written."""
    if file.suffix not in (".png", ".npz", ""):
        raise InputError(f"--out is {file}: it must end in .png or .npz, or be a folder")
    folder = file if file.suffix == "" else file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; choose another place with --out"
        ) from None
    if not os.access(folder, os.W_OK) or file.is_dir() != (file.suffix == ""):
        raise InputError(
            f"cannot write {file}: no permission, or a folder of that name; choose another place with --out"
        )

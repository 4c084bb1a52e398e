"""Attacks with damaged and malicious files.

Each attack tries many files and returns their number. A file must be read, or rejected with an
InputError or RunError of one line. Any other outcome fails the attack.
"""

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image
from safetensors.torch import save_file

from soflow.assemble import make_network
from soflow.config import Config, dump, read_recipe
from soflow.config.reading import known_keys, parse_yaml, put, validate
from soflow.data.arrays import ArrayImages
from soflow.data.dataset import Encoder
from soflow.data.images import decode, open_image
from soflow.data.latents import LatentsPlan, load_latents
from soflow.data.store import Piece, make_store
from soflow.errors import InputError, RunError
from soflow.evaluation import sample_set as samples
from soflow.evaluation.reference_files import arrays_in, read
from soflow.interop.pretrained import load_pretrained
from soflow.interop.reference import import_checkpoint

TINY = [
    "network.width=8", "network.depth=1", "network.heads=2", "network.patch=4",
    "data.num_classes=2", "objective.guidance.scale=1",
]  # fmt: skip
#: Characters with a meaning in YAML, and characters that must not reach a terminal.
LETTERS = "[]{}:,&*!|>-?'\"%@`#~<= \n\t.0123456789abxeEinftrulynos\x1b\x00\u202e\ud800"


class Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def withstands(work: Callable[[], object]) -> object:
    """Returns the result of `work`, or None after an InputError or RunError of bounded length."""
    try:
        return work()
    except (InputError, RunError) as error:
        assert 10 < len(str(error)) < 3000, str(error)[:200]
        return None


def damage(content: bytes, draw: random.Random) -> bytes:
    """Returns the bytes truncated, flipped, overwritten, repeated or with insertions."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0:
                changed = changed[:place]
            case 1 | 2 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 3:
                changed[place : place + draw.choice([1, 4, 8])] = draw.choice(
                    [b"\xff" * 8, bytes(8), b"9" * 8, b"\x80\x04"]
                )
            case 4:
                changed[place:place] = draw.randbytes(draw.randrange(1, 40))
            case _:
                changed[place:place] = changed[: draw.randrange(1, 200)]
    return bytes(changed)


def rezipped(content: bytes, draw: random.Random, only: str = "") -> bytes:
    """Returns a zip file with one damaged member and matching checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stream, "w") as made:
        victim = draw.choice([name for name in archive.namelist() if name.endswith(only)])
        for name in archive.namelist():
            member = archive.read(name)
            made.writestr(name, damage(member, draw) if name == victim else member)
    return stream.getvalue()


def attack_files(
    count: int, file: Path, wholes: list[bytes], work: Callable[[], object], only: str = ""
) -> int:
    """Returns `count` damaged versions of files. In every other zip file, a member is damaged."""
    draw = random.Random(0)
    for number in range(count):
        whole = wholes[number % len(wholes)]
        inside = whole[:2] == b"PK" and number // len(wholes) % 2
        file.write_bytes(rezipped(whole, draw, only) if inside else damage(whole, draw))
        withstands(work)
    return count


values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text(max_size=20)
    | some.binary(max_size=5)
    | some.dates()
    | some.sampled_from(
        [
            -1,
            0,
            1,
            2**63,
            10**99,
            1e308,
            "",
            "dit",
            "unet",
            "mlp",
            "soflow",
            "mean_flow",
            "folder",
            [1, 8, 8],
        ]
    ),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(some.text(max_size=8) | some.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
keys = some.sampled_from([*known_keys(), "data", "network", "objective", "train"]) | some.text(
    max_size=12
)


def attack_configuration(count: int) -> int:
    """Tries random keys and values: as Python values, in YAML files, and as overrides."""
    tried = 0
    whole = read_recipe("digits").model_dump(mode="json")

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        some.lists(some.tuples(keys, values), max_size=3),
        some.booleans(),
        some.text(LETTERS, max_size=40),
    )
    def attack(changes: list[tuple[str, Any]], from_whole: bool, text: str) -> None:
        nonlocal tried
        tried += 1

        def work() -> None:
            config = json.loads(json.dumps(whole)) if from_whole else {}
            for key, value in changes:
                put(config, key, value)
            as_text = yaml.safe_dump(config, allow_unicode=True) if tried % 4 == 0 else ""
            made = validate(parse_yaml(as_text, "a text") if as_text else config)
            assert isinstance(made, Config)
            if tried % 16 == 0:
                assert validate(parse_yaml(dump(made), "its own text")) == made

        withstands(work)
        if tried % 4 == 0:
            key = changes[0][0] if changes else "train.steps"
            withstands(lambda: read_recipe("digits", [f"{key}={text}"]))

    attack()
    return tried


def attack_yaml(count: int, folder: Path) -> int:
    """Tries damaged recipe files, and texts of YAML's special characters."""
    file, draw = folder / "recipe.yaml", random.Random(0)
    whole = dump(read_recipe("digits", TINY)).encode()
    for number in range(count):
        strange = "".join(draw.choices(LETTERS, k=draw.randrange(60))).encode(
            errors="surrogatepass"
        )
        file.write_bytes(damage(whole, draw) if number % 2 else strange)
        withstands(lambda: read_recipe(str(file)))
    return count


def attack_npz(count: int, folder: Path) -> int:
    """Tries damaged .npz files as training data, as samples and as a reference."""
    wholes, file = [], folder / "arrays.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(
            file,
            arr_0=pixels,
            arr_1=np.arange(6),
            protocol=np.array('{"features": {"name": "inception"}}'),
        )
        wholes.append(file.read_bytes())

    def of_samples() -> None:
        list(samples.sample_arrays(file).parts())

    def work() -> None:
        withstands(of_samples)
        withstands(lambda: read(file, ("arr_0", "arr_1", "protocol"), arrays_in(file)))
        images = ArrayImages(str(file), "train")
        for opener in images.openers(range(len(images))):
            opener()

    return attack_files(count, file, wholes, work, ".npy")


def attack_safetensors(count: int, folder: Path) -> int:
    """Tries damaged safetensors files in `init_from`."""
    file, network = folder / "weights.safetensors", make_network(read_recipe("digits", TINY))
    save_file(network.state_dict(), file)
    return attack_files(count, file, [file.read_bytes()], lambda: load_pretrained(network, file))


def attack_checkpoints(count: int, folder: Path) -> int:
    """Tries damaged torch.save files, old and new format, in import and `init_from`."""
    file, network = folder / "checkpoint.pt", make_network(read_recipe("digits", TINY))
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters()).state_dict()
    content = {"model": state, "ema_model": state, "finished_steps": 3, "optimizer": optimizer}
    wholes = []
    for new in (True, False):
        torch.save(content, file, _use_new_zipfile_serialization=new)
        wholes.append(file.read_bytes())
    settings = folder / "reference.yaml"
    settings.write_text("learning_rate: 1.0e-4\nmodel_type: DiT-B-4\n")

    def work() -> None:
        withstands(lambda: load_pretrained(network, file))
        withstands(lambda: import_checkpoint(file, settings, folder / "run", heads=2))

    return attack_files(count, file, wholes, work, "data.pkl")


def attack_images(count: int, folder: Path) -> int:
    """Tries damaged image files as samples and as training data."""
    wholes, file = [], folder / "image.png"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        stream = io.BytesIO()
        picture.save(stream, form)
        wholes.append(stream.getvalue())

    def trained_on() -> None:
        try:
            decode(lambda: open_image(file), (8, 8), 3)
        except Exception as error:  # every file counts as an unreadable image
            raise InputError(f"{file}: {type(error).__name__}") from None

    def work() -> None:
        withstands(trained_on)
        samples.kind(file)
        samples.decoded(file, 3)

    return attack_files(count, file, wholes, work)


def attack_json(count: int, file: Path, work: Callable[[], object]) -> int:
    """Returns a JSON file in which one value was replaced, removed or damaged."""
    whole, draw = file.read_bytes(), random.Random(0)
    strange = [
        None,
        True,
        -1,
        0,
        3,
        2**64,
        1e400,
        "x",
        "../x",
        "<b>",
        [],
        [1],
        {},
        {"a": 1},
        ["a", None],
        10**300,
    ]
    for number in range(count):
        content = json.loads(whole)
        place: Any = content
        while True:
            name = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[name], dict | list) or not place[name] or draw.random() < 0.3:
                break
            place = place[name]
        place[name] = draw.choice(strange)
        file.write_bytes(json.dumps(content).encode() if number % 4 else damage(whole, draw))
        withstands(work)
    file.write_bytes(whole)
    return count


def attack_latents(count: int, folder: Path) -> int:
    """Tries damaged indices and plans of latents with valid rows."""
    folder.mkdir()
    rows = np.abs(np.random.default_rng(0).normal(size=(4, 8, 2, 2))).astype(np.float32)
    write_latents(folder, rows)

    def work() -> None:
        latents = load_latents(str(folder), "train")
        assert latents.shape == (4, 2, 2)
        assert latents.labels is None or int(latents.labels.max()) < 2**17

    return sum(attack_json(count // 2, folder / f"{name}.json", work) for name in ("index", "plan"))


def write_latents(folder: Path, rows: np.ndarray) -> None:
    plan = LatentsPlan(
        name="l",
        encoder=Encoder(name="vae", scale=1.0, size=16),
        class_names=("a", "b"),
        unlabelled="",
        count=len(rows),
        per_shard=2,
    )
    make_store(
        folder, plan, lambda some: Piece(rows[some.start : some.stop], [i % 2 for i in some])
    )


def pickled(what: object) -> bytes:
    return pickle.dumps(what)

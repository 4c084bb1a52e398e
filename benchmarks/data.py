"""Compares the speed of the data loader with the speed of training.

    python benchmarks/data.py [BATCH]     prints a table, writes benchmarks/results/data.json

Images are 2,000 JPEGs of 256x256, decoded into the cache at 64x64. Latents are 20,000 arrays of
4x32x32, as soflow encode writes them. Both are loaded as in training, from memory and from
memory-mapped files, onto the GPU if there is one. The network is DiT-B/4.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from soflow.comparison.bench import bench
from soflow.config import read_recipe
from soflow.config.schema import DataConfig
from soflow.data import batches as batches_module
from soflow.data import sources
from soflow.data.batches import Batches
from soflow.data.dataset import Dataset, Encoder
from soflow.data.shards import open_store
from soflow.data.store import Piece, Plan, items_of_a_shard, make_store

IMAGES, LATENTS, SIDE = 2_000, 20_000, 64
RATES, SECONDS = 5, 2.0


def photographs(folder: Path) -> None:
    """Writes JPEGs of noise at several scales, which are as slow to decode as photographs."""
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        noise = [
            Image.fromarray(random.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((256, 256))
            for n in (4, 16, 64)
        ]
        mixed = np.mean([np.asarray(one, np.float32) for one in noise], axis=0).astype(np.uint8)
        Image.fromarray(mixed).save(folder / f"{i:05d}.jpg", quality=90)


def latents(folder: Path) -> Dataset:
    """Random latents in the format of soflow encode."""
    shape = (8, 32, 32)
    random = np.random.default_rng(0)

    def make(rows: range) -> Piece:
        return Piece(
            random.standard_normal((len(rows), *shape), dtype=np.float32).astype(np.float16), None
        )

    per_shard = items_of_a_shard(LATENTS, 2 * int(np.prod(shape)))
    make_store(folder, Plan(kind="latents", count=LATENTS, per_shard=per_shard), make)
    rows, _ = open_store(folder)
    return Dataset("latents", "train", rows, None, encoder=Encoder("none", 0.18215, size=256))


def rates(dataset: Dataset, batch: int, resident: bool, device: torch.device) -> list[float]:
    """Samples per second, measured RATES times after a warm-up."""
    batches_module.RESIDENT = 2**40 if resident else 0
    loader = Batches(dataset, batch, seed=0, device=device)
    measured, step = [], 0
    for _ in range(RATES + 1):
        start, first = time.perf_counter(), step
        while time.perf_counter() - start < SECONDS:
            loader.microbatch(step)
            step += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        measured.append((step - first) * batch / (time.perf_counter() - start))
    return measured[1:]


def main() -> None:
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, object] = {
        "batch": batch,
        "device": str(device),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        folder = Path(name) / "photographs"
        folder.mkdir()
        photographs(folder)
        config = DataConfig(source="folder", path=str(folder), size=SIDE)
        start = time.perf_counter()
        images = sources.load(config)
        decoding = IMAGES / (time.perf_counter() - start)
        start = time.perf_counter()
        sources.load(config)
        again = time.perf_counter() - start
        loaders = {
            f"{kind}, {'in memory' if resident else 'memory-mapped'}": rates(
                dataset, batch, resident, device
            )
            for kind, dataset in (
                ("images 3x64x64", images),
                ("latents 4x32x32", latents(Path(name) / "latents")),
            )
            for resident in (True, False)
        }
    recipe = read_recipe("imagenet256-b4", [f"train.batch_size={batch}"])
    (measured,) = bench({"DiT-B/4": recipe}, 1)["DiT-B/4"]
    consumed = batch / measured.seconds_per_step
    print(f"decoding 256x256 JPEGs, once: {decoding:,.0f} images/s")
    print(f"opening the cache again: {again:.2f} s")
    print(f"training DiT-B/4, batch size {batch}: {consumed:,.1f} samples/s on {measured.device}")
    for name, measurements in loaders.items():
        low, middle, high = min(measurements), statistics.median(measurements), max(measurements)
        spread = f"({low:,.0f} to {high:,.0f})"
        ratio = f"{middle / consumed:,.0f} times the training speed"
        print(f"{name}: {middle:,.0f} samples/s {spread}, {ratio}")
    results |= {
        "decoding": decoding,
        "reopening_seconds": again,
        "consumed": consumed,
        "loaders": loaders,
    }
    (Path(__file__).parent / "results" / "data.json").write_text(
        json.dumps(results, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()

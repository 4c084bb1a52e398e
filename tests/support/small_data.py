"""Small datasets as files, arrays and parquet, and small autoencoders of diffusers."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

NAMES = ("cat", "dog")


def pixels(count, shape=(12, 12, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_folder(root, arrays, names=NAMES, ending="png"):
    """Writes images into one subfolder per class, in turn; without names, into one folder."""
    for i, array in enumerate(arrays):
        folder = root / names[i % len(names)] if names else root
        folder.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(array).save(folder / f"{i:04d}.{ending}")
    return root


def write_parquet(folder, arrays, split="train", label=True, **more):
    """Writes a parquet file of PNGs with labels in turn."""
    folder.mkdir(exist_ok=True)
    columns = {"picture": [Pillow.fromarray(array) for array in arrays], **more}
    kinds = {"picture": Image(), **{name: Value("string") for name in more}}
    if label:
        columns["kind"], kinds["kind"] = (
            [i % 2 for i in range(len(arrays))],
            ClassLabel(names=list(NAMES)),
        )
    Dataset.from_dict(columns, Features(kinds)).to_parquet(
        folder / f"{split}-00000-of-00001.parquet"
    )
    return folder


def make_vae(folder, channels=3, latents=4, seed=0):
    """An AutoencoderKL with random weights that halves the image size."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=latents,
        layers_per_block=1,
        scaling_factor=2.0,
        shift_factor=0.1,
    ).save_pretrained(folder)
    return folder


def make_tiny_vae(folder):
    """An AutoencoderTiny, which has no posterior."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(
        folder
    )
    return folder

"""Autoencoders of the package diffusers: images to the latents that are trained on, and samples back to images.

Read by their name on the Hub or from a local folder; safetensors only, so that nothing in a file can run.
"""

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.data.dataset import Encoder
from soflow.errors import InputError, first_line, in_short
from soflow.system.records import read_json

#: Images decoded at once.
BATCH = 16


@dataclass(frozen=True)
class Autoencoder:
    """A frozen autoencoder on its device."""

    module: nn.Module
    encoder: Encoder
    device: torch.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of the latents of images (B, C, H, H) in [-1, 1]: (B, 2 c, h, h), not yet scaled.

        An autoencoder without a posterior has deviation 0.
        """
        encoded: Any = self.module.encode(images.to(self.device))  # type: ignore[operator]
        posterior = getattr(encoded, "latent_dist", None)
        if posterior is not None:
            return torch.cat([posterior.mean, posterior.std], dim=1).float().cpu()
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return torch.cat([latents, torch.zeros_like(latents)], dim=1).float().cpu()

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, H) in [-1, 1], on the samples' device, of samples (B, c, h, h): z / scale + shift, decoded."""
        latents = samples / self.encoder.scale + self.encoder.shift
        parts = [self.module.decode(part.to(self.device)).sample for part in latents.split(BATCH)]  # type: ignore[operator]
        return torch.cat(parts).float().clamp(-1, 1).to(samples.device)

    def checksum(self) -> str:
        """CRC-32 of its weights: copies under other names have the same."""
        value = 0
        for tensor in self.module.state_dict().values():
            value = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), value)
        return f"{value:08x}"

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """[c, h, h] of images of side `size`. Raises InputError for a size that it cannot take."""
        try:
            mean, _ = self.encode(torch.zeros(1, self.encoder.channels, size, size)).chunk(2, dim=1)
            back = self.decode(mean).shape[-1]
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.encoder.name} cannot take images of {size}x{size}: {first_line(error)}"
            ) from None
        if back != size:
            raise InputError(
                f"{self.encoder.name} cannot take images of {size}x{size}: they come back as {back}x{back}"
            )
        channels, height, width = mean.shape[1:]
        return channels, height, width


class Decoder:
    """From samples to images as a run needs it: by its encoder's scale, the autoencoder being loaded when first asked.

    name: to be used in place of the encoder's, such as a local copy of it.
    """

    def __init__(self, encoder: Encoder, device: torch.device, name: str = "") -> None:
        self.encoder = encoder
        self.device = device
        self.name = name or encoder.name

    def __call__(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, H) of samples (B, c, h, h). Raises InputError for an autoencoder of other latents."""
        autoencoder, expected = self.loaded
        if expected != tuple(samples.shape[1:]):
            raise InputError(
                f"{self.name} has latents {list(expected)}, the samples are {list(samples.shape[1:])}"
            )
        return autoencoder.decode(samples)

    @cached_property
    def loaded(self) -> tuple[Autoencoder, tuple[int, int, int]]:
        """The autoencoder and the shape of its latents. Raises InputError where it cannot be loaded."""
        autoencoder = load_autoencoder(self.name, self.device)
        return replace(autoencoder, encoder=self.encoder), autoencoder.latent_shape(
            self.encoder.size
        )


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> Autoencoder:
    """An autoencoder by its name on the Hub or from the folder that save_pretrained wrote.

    Raises InputError where there is none, or where diffusers is missing.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError(
            "latents need the package diffusers: pip install 'soflow[latents]'"
        ) from None
    folder = {"subfolder": "vae"} if (Path(name) / "vae" / "config.json").is_file() else {}
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    try:
        settings: Any = diffusers.AutoencoderKL.load_config(name, **folder)
        kind: Any = getattr(diffusers, str(settings.get("_class_name")), None)
        if not (
            hasattr(kind, "from_pretrained") and hasattr(kind, "encode") and hasattr(kind, "decode")
        ):
            raise InputError(
                f"{name} is a {settings.get('_class_name')}, not an autoencoder of diffusers"
            )
        if Path(name).is_dir():
            require_own_files(Path(name))
        module: Any = kind.from_pretrained(name, use_safetensors=True, **folder)
        encoder = encoder_of(module.config, name)
    except InputError:
        raise
    except Exception as error:  # whatever the Hub, the file system and damaged files raise
        raise InputError(
            f"the autoencoder {name} cannot be loaded: {first_line(error)}; give a name on the Hub or a folder"
        ) from None
    place = torch.device(device)
    return Autoencoder(module.to(place, torch.float32).eval().requires_grad_(False), encoder, place)


def encoder_of(config: Any, name: str) -> Encoder:
    """What an autoencoder's configuration says of latents."""
    return Encoder(
        str(Path(name).resolve())
        if Path(name).is_dir()
        else name,  # latents are decoded from other folders, too
        float(config.get("scaling_factor") or 1.0),
        float(config.get("shift_factor") or 0.0),
        channels=int(config.in_channels),
    )


def require_own_files(folder: Path) -> None:
    """Raises InputError where a list of parts of weights names a file that does not lie beside it."""
    for index in folder.rglob("*.safetensors.index.json"):
        parts = read_json(index, {"weight_map": {...: str}})["weight_map"].values()
        if strange := [part for part in parts if Path(part).name != part]:
            raise InputError(
                f"{index} names {in_short(strange[0])}, which does not lie beside it: nothing there is opened"
            )

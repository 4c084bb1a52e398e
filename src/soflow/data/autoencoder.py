"""Autoencoders of diffusers, which encode images to latents and decode samples to images.

They are loaded from the Hugging Face Hub or from a local folder. Only safetensors files are read,
since other weight files can run code.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.data.dataset import Encoder
from soflow.errors import InputError, first_line, in_short
from soflow.system.fingerprints import checksum_of
from soflow.system.packages import optional_package
from soflow.system.records import Record

#: Images per decoding batch.
BATCH = 16


class WeightParts(Record):
    """*.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Autoencoder:
    """A frozen autoencoder on a device."""

    module: nn.Module
    encoder: Encoder
    device: torch.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encodes images.

        Args:
            images: Images (B, C, H, H) in [-1, 1].

        Returns:
            The mean and standard deviation of the latents, (B, 2 c, h, h), not scaled. The standard
            deviation is 0 for an autoencoder without a posterior.
        """
        encoded: Any = self.module.encode(images.to(self.device))  # type: ignore[operator]
        posterior = getattr(encoded, "latent_dist", None)
        if posterior is not None:
            return torch.cat([posterior.mean, posterior.std], dim=1).float().cpu()
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return torch.cat([latents, torch.zeros_like(latents)], dim=1).float().cpu()

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Decodes samples (B, c, h, h) to images (B, C, H, H) in [-1, 1].

        The latents are samples / scale + shift.
        """
        latents = samples / self.encoder.scale + self.encoder.shift
        decode: Any = self.module.decode
        parts = [decode(part.to(self.device)).sample for part in latents.split(BATCH)]
        return torch.cat(parts).float().clamp(-1, 1).to(samples.device)

    def checksum(self) -> str:
        """CRC-32 of the weights. Copies with other names have the same checksum."""
        tensors = self.module.state_dict().values()
        return checksum_of(tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors)

    def latent_shape(self, size: int) -> tuple[int, ...]:
        """The shape (c, h, h) of the latents of images (C, size, size).

        Raises:
            InputError: If the autoencoder does not support this size.
        """
        try:
            mean, _ = self.encode(torch.zeros(1, self.encoder.channels, size, size)).chunk(2, dim=1)
            back = self.decode(mean).shape[-1]
            if back != size:
                raise ValueError(f"it decodes them to {back}x{back}")
        except (RuntimeError, ValueError) as error:
            what = f"{self.encoder.name} does not support images of {size}x{size}"
            raise InputError(f"{what}: {first_line(error)}") from None
        return tuple(mean.shape[1:])


class Decoder:
    """Decodes samples with the scale of an encoder. The first call loads the autoencoder.

    Args:
        encoder: The encoder of the latents.
        device: The device to decode on.
        name: The name or folder of another copy of the autoencoder, to use instead of the original.
    """

    def __init__(self, encoder: Encoder, device: torch.device, name: str = "") -> None:
        self.encoder = encoder
        self.device = device
        self.name = name or encoder.name

    def __call__(self, samples: Tensor) -> Tensor:
        """Decodes samples (B, c, h, h) to images (B, C, H, H).

        Raises:
            InputError: If the samples do not have the shape of the latents.
        """
        autoencoder, expected = self.loaded
        shape = tuple(samples.shape[1:])
        if shape != expected:
            latents = f"{self.name} decodes latents of shape {list(expected)}"
            raise InputError(f"{latents}, but the samples have shape {list(shape)}")
        return replace(autoencoder, encoder=self.encoder).decode(samples)

    @cached_property
    def loaded(self) -> tuple[Autoencoder, tuple[int, ...]]:
        """The autoencoder and the shape of its latents."""
        autoencoder = load_autoencoder(self.name, self.device)
        return autoencoder, autoencoder.latent_shape(self.encoder.size)


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> Autoencoder:
    """Loads an autoencoder.

    Args:
        name: A name on the Hugging Face Hub, or a folder written by save_pretrained.
        device: The device of the autoencoder.

    Raises:
        InputError: If the autoencoder cannot be loaded, or diffusers is not installed.
    """
    diffusers = optional_package("diffusers", "latents need", "latents")
    name = expanduser(name)
    folder = {"subfolder": "vae"} if (Path(name) / "vae" / "config.json").is_file() else {}
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    try:
        kind = diffusers.AutoencoderKL.load_config(name, **folder).get("_class_name")
        made: Any = getattr(diffusers, str(kind), None)
        if not all(hasattr(made, one) for one in ("from_pretrained", "encode", "decode")):
            raise InputError(f"{name} is a {kind}: use an autoencoder of diffusers")
        local = Path(name).is_dir()
        if local:
            require_own_files(Path(name))
        module = made.from_pretrained(name, use_safetensors=True, **folder)
        config = module.config
        encoder = Encoder(
            # an absolute path, since latents may be decoded from another working directory
            name=str(Path(name).resolve()) if local else name,
            scale=float(config.get("scaling_factor") or 1.0),
            shift=float(config.get("shift_factor") or 0.0),
            channels=int(config.in_channels),
        )
    except InputError:
        raise
    except Exception as error:  # the Hub, the file system and damaged files raise any exception
        what = f"the autoencoder {name} cannot be loaded: {first_line(error)}"
        raise InputError(f"{what}: use a name on the Hugging Face Hub or a folder") from None
    place = torch.device(device)
    return Autoencoder(module.to(place, torch.float32).eval().requires_grad_(False), encoder, place)


def require_own_files(folder: Path) -> None:
    """Raises InputError if a weight index refers to a file in another folder."""
    for file in folder.rglob("*.safetensors.index.json"):
        parts = WeightParts.read(file)
        for part in () if parts is None else parts.weight_map.values():
            if Path(part).name != part:
                raise InputError(
                    f"{file} refers to {in_short(part)}, which is outside its folder: it is not "
                    "opened"
                )

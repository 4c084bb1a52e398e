"""The Inception network of torch-fidelity, which defines FID. It resizes images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soflow.errors import InputError, first_line
from soflow.system.packages import install

#: sFID (arXiv 2103.03841) as in ADM: the first channels of a convolution with 17 x 17 outputs.
SPATIAL_CHANNELS = 7


def load_inception(device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Loads the network.

    Returns:
        A function that maps bytes (B, 3 or 1, H, W) to pooled features (B, 2048), logits without
        bias (B, 1008) and spatial features (B, 2023).

    Raises:
        InputError: If a package or the weights are missing.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as package
    except ImportError as error:
        missing = "torchvision" if "torchvision" in str(error) else "torch-fidelity"
        raise InputError(
            f"the features 'inception' need {missing}: {install('eval')}; "
            "distances with other features are not FID"
        ) from None
    except Exception as error:  # a torchvision built for another torch raises any exception
        raise InputError(
            f"the features 'inception' need a torchvision that fits torch {torch.__version__}, "
            f"but the installed one cannot be loaded ({first_line(error)}): install matching "
            "versions of both, see pytorch.org"
        ) from None
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(package.URL_INCEPTION_V3).name
    try:
        outputs = ["2048", "logits_unbiased"]
        network: Any = package.FeatureExtractorInceptionV3("inception-v3-compat", outputs)
    except Exception as error:  # a failed download, a full disk or a damaged file
        raise InputError(
            f"the weights of the features 'inception' cannot be loaded ({first_line(error)}): "
            f"download {package.URL_INCEPTION_V3} to {file}"
        ) from None
    network = network.to(device).eval()
    spatial: list[Tensor] = []
    block = network.Mixed_6d.branch1x1
    block.register_forward_hook(lambda module, given, output: spatial.append(output))

    def features(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spatial.clear()
        pooled, logits = network(seen.expand(-1, 3, -1, -1).to(device))
        # (B, 17, 17, 7), the axis order of mu_s in ADM's reference files
        maps = spatial[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)
        return pooled, logits, maps.flatten(1)

    return features

"""Networks F(x, t, s, labels), one module each. Importing this package registers all of them."""

from soflow.networks import dit, in_context_dit, mlp, unet
from soflow.networks.registry import NETWORKS

__all__ = ["NETWORKS", "dit", "in_context_dit", "mlp", "unet"]

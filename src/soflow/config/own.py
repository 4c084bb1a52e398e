"""What settings say of a network or an objective that was given in Python."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from soflow.guidance import DrawnGuidance
from soflow.system.registry import Setting

#: Their name in the configuration.
OWN = "python"


@dataclass(frozen=True)
class OwnNetwork:
    """Stands for a network of one's own, which the run's files cannot build."""

    kind: Annotated[str, Setting("its class")] = ""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, **inputs: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class OwnObjective:
    """Stands for an objective of one's own: what sampling needs to know of it."""

    kind: Annotated[str, Setting("its class")] = ""
    settings: Annotated[dict[str, Any], Setting("its fields")] = field(default_factory=dict)
    samplers: Annotated[tuple[str, ...], Setting("that suit it, its own first")] = ("ode",)
    whole_network: Annotated[bool, Setting("whether it does more than call the network")] = True
    forward_derivative: Annotated[bool, Setting("whether it takes its derivative")] = False
    trains_null: Annotated[bool, Setting("whether it trains the null label")] = True
    guidance_scale: Annotated[float, Setting("of classifier-free guidance")] = 1.0
    guidance: Annotated[DrawnGuidance | None, Setting("whose scales are drawn, if any")] = None

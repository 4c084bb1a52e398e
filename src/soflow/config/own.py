"""The configuration sections of a network or an objective that was passed from Python."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from soflow.guidance import DrawnGuidance
from soflow.system.registry import Setting

#: The value of `network.name` or `objective.name` for these components.
OWN = "python"


@dataclass(frozen=True)
class OwnNetwork:
    """Placeholder for a user-defined network, which cannot be built from the run's files."""

    kind: Annotated[str, Setting("class name of the network")] = ""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, **inputs: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class OwnObjective:
    """Placeholder for a user-defined objective, with the properties that sampling needs."""

    kind: Annotated[str, Setting("class name of the objective")] = ""
    settings: Annotated[dict[str, Any], Setting("fields of the objective")] = field(
        default_factory=dict
    )
    samplers: Annotated[tuple[str, ...], Setting("supported samplers, the default first")] = (
        "ode",
    )
    whole_network: Annotated[
        bool, Setting("whether the objective does more with the network than call it")
    ] = True
    forward_derivative: Annotated[
        bool, Setting("whether the objective takes Jacobian-vector products of the network")
    ] = False
    parameterization: Annotated[
        str | None, Setting("the only parameterization that the objective works with; null: any")
    ] = None
    trains_null: Annotated[bool, Setting("whether the objective trains the null label")] = True
    guidance_scale: Annotated[float, Setting("scale of classifier-free guidance in training")] = 1.0
    guidance: Annotated[
        DrawnGuidance | None, Setting("guidance with drawn scales; null: fixed scale")
    ] = None

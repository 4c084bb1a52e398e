"""The section `optimizer` of the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from soflow.config.optimizer_classes import canonical, has_betas, require_settings_apply
from soflow.config.sections import Section, key

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
#: Decay of the two moments.
BETAS = (0.9, 0.99)


class OptimizerConfig(Section):
    """The optimizer and its learning rate."""

    name: str = key(
        "adamw",
        "adamw, radam, muon (of hidden matrices; adamw of the rest), or a class of torch.optim, "
        "such as SGD",
    )
    options: dict[str, Any] = key(
        {}, "more settings of the optimizer's class, such as {momentum: 0.9}"
    )
    lr: PositiveFloat = key(1e-4, "learning rate after the warm-up")
    lr_schedule: Literal["constant", "cosine", "linear"] = key(
        "constant", "of the learning rate after the warm-up: constant, or falling to lr_end"
    )
    lr_end: Share = key(0.0, "learning rate at the last step, as a fraction of lr")
    betas: tuple[Decay, Decay] | None = key(
        None, "decay of the two moments, [0.9, 0.99] if null; null if the optimizer has none"
    )
    weight_decay: float = key(
        0.0, "decoupled for adamw, radam and muon, as the class has it for others", ge=0
    )
    warmup: int = key(0, "steps over which the learning rate rises from 0", ge=0)
    clip: float = key(0.0, "largest gradient norm; 0 does not clip", ge=0)

    @model_validator(mode="before")
    @classmethod
    def betas_have_a_default(cls, section: Any) -> Any:
        if not isinstance(section, dict) or section.get("betas") is not None:
            return section
        name = str(section.get("name", "adamw"))
        return {**section, "betas": BETAS if has_betas(name) else None}

    @field_validator("name")
    @classmethod
    def name_is_known(cls, name: str) -> str:
        return canonical(name)

    @model_validator(mode="after")
    def settings_apply(self) -> "OptimizerConfig":
        """Rejects settings that the optimizer would ignore."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        given = {name: value for name, value in self if value != defaults[name]}
        require_settings_apply(self.name, given, self.options)
        return self

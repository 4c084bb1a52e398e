"""The section `optimizer` of the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from soflow.config.optimizer_classes import canonical, has_betas, require_settings_apply
from soflow.config.sections import Section, key

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
#: Default decay rates of the first and second moments.
BETAS = (0.9, 0.99)


class OptimizerConfig(Section):
    """The optimizer and its learning rate."""

    name: str = key(
        "adamw",
        "optimizer: adamw, radam, muon (for hidden matrices, with adamw for the other parameters), "
        "or a class of torch.optim, such as SGD",
    )
    options: dict[str, Any] = key(
        {}, "further arguments of the optimizer class, such as {momentum: 0.9}"
    )
    lr: PositiveFloat = key(1e-4, "learning rate after the warm-up")
    lr_schedule: Literal["constant", "cosine", "linear"] = key(
        "constant",
        "learning-rate schedule after the warm-up: constant, or a cosine or linear decay to lr_end",
    )
    lr_end: Share = key(
        0.0, "learning rate at the last step of a cosine or linear schedule, as a fraction of lr"
    )
    betas: tuple[Decay, Decay] | None = key(
        None,
        "decay rates of the first and second moments; null: [0.9, 0.99] if the optimizer has betas",
    )
    weight_decay: float = key(
        0.0,
        "weight decay; decoupled for adamw, radam and muon, as implemented by torch for other "
        "optimizers",
        ge=0,
    )
    warmup: int = key(0, "warm-up steps, in which the learning rate rises linearly to lr", ge=0)
    clip: float = key(
        0.0, "maximum gradient norm; larger gradients are scaled down to it; 0: no clipping", ge=0
    )

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

"""`soflow recipes`: lists the included recipes, or prints one with an explanation of every key."""

from collections.abc import Iterator
from typing import Annotated

from typer import Argument

NAME = "Recipe to print, with the value and meaning of every key (default: list all recipes)."
CHANGES = "Changes to the recipe, such as network.name=unet."


def recipes(
    name: Annotated[str | None, Argument(help=NAME)] = None,
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
) -> None:
    """List the included recipes, or print one with all its keys."""
    from soflow.config.reading import read_recipe, read_yaml, recipe_names

    if name is None:
        for recipe in recipe_names():
            print(f"{recipe:18} {read_yaml(recipe).get('description', '')}")
        return
    for line in explained(read_recipe(name, overrides or [])):
        print(line)


def explained(section: object, indent: str = "", names: str = "") -> Iterator[str]:
    """A configuration as YAML, with the meaning of each key as a comment.

    `names` lists the choices for the section's `name`, such as the registered networks.
    """
    import yaml
    from pydantic import BaseModel

    from soflow.config.sections import chosen_from

    assert isinstance(section, BaseModel)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        about = names if names and name == "name" else field.description
        comment = f"  # {about}" if about else ""
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:{comment}"
            chosen = chosen_from(field.metadata)
            yield from explained(value, indent + "  ", ", ".join(chosen.registry) if chosen else "")
        else:
            plain = list(value) if isinstance(value, tuple) else value
            dumped = yaml.safe_dump(plain, default_flow_style=True, width=1000)
            text = dumped.removesuffix("...\n").strip()
            yield f"{f'{indent}{name}: {text}':36}{comment}"

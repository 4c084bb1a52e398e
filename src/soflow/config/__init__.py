"""The configuration: its keys (schema.py) and the code that reads it (reading.py, variants.py)."""

from soflow.config.reading import dump, read_recipe, recipe_names
from soflow.config.schema import Config
from soflow.config.variants import read_objectives

__all__ = ["Config", "dump", "read_objectives", "read_recipe", "recipe_names"]

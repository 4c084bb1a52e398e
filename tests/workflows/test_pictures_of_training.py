"""Sample grids drawn during training."""

import pytest
import torch

from soflow.config import read_recipe
from soflow.run.folder import RunFolder
from soflow.workflows import sample_grid
from support.settings import TINY_DIT


@pytest.mark.parametrize(
    ("recipe", "overrides", "classes"),
    [
        ("moons", ["data.num_classes=2"], 2),
        ("digits", TINY_DIT, 10),
        ("digits", [*TINY_DIT, "data.num_classes=0", "objective.guidance.scale=1"], 0),
    ],
)
def test_the_picture_of_a_step_shows_every_class(recipe, overrides, classes, tmp_path, monkeypatch):
    drawn = []

    def sample_many(model, num, labels, *more, **settings):
        drawn.append(labels)
        return torch.zeros(num, *config.data.shape)

    monkeypatch.setattr(sample_grid, "sample_many", sample_many)
    config = read_recipe(recipe, overrides)
    folder = RunFolder(tmp_path)
    folder.create()
    sample_grid.draw_samples(config, folder, 1, None, torch.device("cpu"))
    (labels,) = drawn
    assert (labels is None) if not classes else (set(labels.tolist()) == set(range(classes)))

"""Columns of tables are matched by name."""

import numpy as np
import pytest
import torch

from soflow.config import read_recipe
from soflow.data.dataset import Scaling
from soflow.errors import InputError
from soflow.evaluation.references import make_sample_scoring, make_scoring
from soflow.evaluation.sample_set import open_samples


def write(file, names, rows):
    lines = [",".join(names), *(",".join(map(str, row)) for row in rows)]
    file.write_text("\n".join(lines) + "\n")


def test_references_with_other_column_order_and_units_compare_like_the_training_data(
    tmp_path,
):
    values = np.random.default_rng(0).normal([0, 100], [1, 10], (60, 2))
    classes = np.arange(60)[:, None] % 3 + 1
    write(tmp_path / "a.csv", ("x", "y", "label"), np.hstack([values, classes]).tolist())
    turned = np.hstack([values[:, ::-1], classes])
    write(tmp_path / "b.csv", ("y", "x", "label"), turned.tolist())
    samples = open_samples(str(tmp_path / "a.csv"))
    assert samples.shape == (2,)  # without the label column
    scorer = make_sample_scoring(samples, "coordinates", str(tmp_path / "b.csv")).scorer
    found = scorer.metrics(scorer.gather(samples.parts(), 60), None)
    assert max(found.marginals.values()) < 1e-6
    recipe = read_recipe("table", [f"data.path={tmp_path / 'a.csv'}"])
    config = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shape": (2,)})})
    scaling = Scaling((0.0, 100.0), (2.0, 20.0), ("x", "y"))  # the scaling of a run
    scorer = make_scoring(config, None, lambda x: x, "", str(tmp_path / "b.csv"), scaling=scaling)
    points = scorer.scorer.reference.points
    expected = torch.tensor((values - [0, 100]) / [2, 20])
    torch.testing.assert_close(points.double(), expected, atol=1e-6, rtol=0)
    write(tmp_path / "c.csv", ("x", "z"), values.tolist())
    with pytest.raises(InputError, match="no column 'y'"):
        make_sample_scoring(samples, "coordinates", str(tmp_path / "c.csv"))

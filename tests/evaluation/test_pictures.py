"""Pictures of samples of any shape, checked by the content of the plots."""

import numpy as np
import pytest
import torch

from soflow.errors import InputError
from soflow.evaluation.pictures import about, grid, grid_columns, picture, shown_channels
from soflow.evaluation.sample_plots import CELLS, clouds, curves, journeys, limits, vectors


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def names(count):
    return tuple(f"column {i}" for i in range(count))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1,), 1), ((2,), 2), ((3,), 3), ((40,), 40), ((1, 16), 1), ((9, 16), 9), ((3, 4, 12), 0),
        ((1, 12, 4), 0), ((4, 6, 6), 4), ((2, 6, 6), 2), ((1, 6, 6), 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 7])
def test_every_shape_has_a_picture_with_and_without_real_data(shape, named, count):
    offset = 100 if named else 0
    samples = offset + normal(0, count, *shape)
    for real in (None, offset + normal(1, 50, *shape)):
        found = picture(samples, 3, names(named), real)
        assert min(found.size) > 20
        assert np.asarray(found.convert("L")).std() > 0


def test_constant_and_few_values_have_a_picture():
    for shape in ((1,), (2,), (3,), (2, 8), (4, 5, 5)):
        assert picture(torch.zeros(2, *shape), 2, names(shape[0]), torch.zeros(1, *shape))


def test_a_pair_plot_names_its_columns_and_their_number():
    figure = vectors(normal(0, 100, 6), ("a", "b", "$c", "d", "e", "f"), normal(1, 100, 6))
    bottom = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    left = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert bottom == ["a", "b", r"\$c", "d"]
    assert left == ["b", r"\$c", "d"]
    assert [text.get_text() for text in figure.texts] == ["columns 1 to 4 of 6"]
    assert len(figure.axes) == 10


def test_real_points_are_not_hidden_by_more_samples():
    figure = vectors(normal(0, 500, 2), names(2), normal(1, 20, 2))
    behind, before = figure.axes[0].collections
    assert len(behind.get_offsets()) == len(before.get_offsets()) == 20


def test_axes_have_the_ranges_of_the_real_data():
    real = normal(1, 1000, 2)
    wild = 1e6 * normal(0, 1000, 2)
    axes = vectors(wild, names(2), real).axes[0]
    low, high = axes.get_xlim()
    assert -10 < low < high < 10


def test_columns_with_other_units_get_other_axes():
    alike, apart = normal(0, 100, 2), normal(0, 100, 2) * torch.tensor([1.0, 1e4])
    assert vectors(alike, names(2)).axes[0].get_aspect() == 1
    assert vectors(apart, names(2)).axes[0].get_aspect() == "auto"


def test_curves_have_a_line_per_channel_and_mention_omissions():
    figure = curves(normal(0, 100, 8, 30), 10, names(8))
    assert len(figure.axes) == CELLS
    assert [len(axes.get_lines()) for axes in figure.axes] == [6] * CELLS
    said = figure.get_supxlabel()
    assert "channels 1 to 6 of 8" in said
    assert f"samples 1 to {CELLS} of 100" in said
    values = normal(0, 100, 8, 30)[3, 2]
    assert np.allclose(figure.axes[3].get_lines()[2].get_ydata(), values)


def test_channels_with_other_ranges_are_scaled_separately():
    signals = normal(0, 20, 2, 30) * torch.tensor([[1.0], [1000.0]])
    figure = curves(signals, 5, ("a", "b"))
    assert "each channel is scaled" in figure.get_supxlabel()
    ends = [np.ptp(np.concatenate([axes.get_lines()[i].get_ydata() for axes in figure.axes]))
            for i in range(2)]  # fmt: skip
    assert ends == pytest.approx([1, 1], rel=0.5)


def test_channels_are_shown_between_percentiles():
    """Channel values from 0 to 1000 become -1 to 1, except for one percent at each end."""
    values = torch.arange(1001.0).view(1, 1, 7, 143).repeat(1, 5, 1, 1)
    shown = shown_channels(values, values)
    assert shown.shape == (1, 3, 7, 143)
    assert shown.flatten()[[10, 500, 990]].tolist() == pytest.approx([-1, 0, 1], abs=1e-5)
    other = shown_channels(values + 1000, values)
    assert float(other.min()) > 1
    assert "3" not in about((3, 8, 8), ())
    assert "a, b, c (3 of 5)" in about((5, 8, 8), tuple("abcde"))
    assert "a (1 of 2)" in about((2, 8, 8), tuple("ab"))


def test_rectangles_keep_their_aspect_ratio():
    sheet = grid(torch.zeros(4, 3, 8, 32), 2)
    assert sheet.size == (2 * (4 * 32 + 2) + 2, 2 * (4 * 8 + 2) + 2)


def test_clouds_share_their_axes():
    drawn = clouds({"samples": normal(0, 99, 2) + 50, "real": normal(1, 99, 2)}, ("a", "b"))
    one, two = drawn.axes
    assert (one.get_xlim(), one.get_ylim()) == (two.get_xlim(), two.get_ylim())
    assert one.get_xlim()[1] > 50
    assert one.get_xlabel() == "a"


def test_journeys_show_one_column_against_time_and_more_against_each_other():
    times = [1.0, 0.5, 0.0]
    for dimensions, labels in ((1, ("s", "a")), (2, ("a", "b")), (5, ("a", "b"))):
        figure = journeys(normal(0, 9, 3, dimensions), times, tuple("abcde"))
        axes = figure.axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == labels
        assert len(axes.get_lines()) == 9


def test_limits_exclude_the_outermost_values():
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 10_000), [1e9]])
    low, high = limits(values)
    assert -0.1 < low < 0.01
    assert 0.99 < high < 1.1


def test_other_shapes_are_rejected():
    for samples in (torch.zeros(4), torch.zeros(0, 1, 8, 8), torch.zeros(1, 1, 1, 8, 8)):
        with pytest.raises(InputError, match="shape"):
            picture(samples)
    with pytest.raises(InputError, match="columns=0"):
        picture(torch.zeros(4, 1, 8, 8), columns=0)


def test_a_picture_has_at_most_as_many_columns_as_samples():
    assert picture(torch.zeros(3, 1, 32, 32)).size == (3 * 34 + 2, 36)
    assert picture(torch.zeros(3, 1, 32, 32))._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("num", "classes", "columns"),
    [
        (64, 0, 8), (60, 0, 10), (7, 0, 7), (13, 0, 7), (11, 0, 6), (31, 0, 8),
        (40, 3, 6), (36, 3, 9), (48, 3, 6),
        (40, 4, 8), (64, 10, 10), (40, 7, 7), (8, 10, 8), (2, 3, 2), (90, 25, 10),
    ],
)  # fmt: skip
def test_grids_have_a_class_per_column_and_few_empty_cells(num, classes, columns):
    labels = torch.arange(num) % classes if classes else None
    assert grid_columns(num, labels) == columns

"""Bundled datasets, batches and augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from soflow.assemble import make_augment
from soflow.config import read_recipe
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.augment import AugmentPipe, inverse_map, warp
from soflow.data.batches import Batches, seed_of
from soflow.data.dataset import Dataset
from soflow.errors import InputError


def load(source, split="train"):
    return sources.load(DataConfig(source=source), split)


def test_digits_are_split_by_class_without_loss():
    train, test = sources.digits("train"), sources.digits("test")
    assert len(train) + len(test) == 1797
    assert train.shape == (1, 8, 8)
    assert (float(train.rows.min()), float(train.rows.max())) == (-1, 1)
    shares = torch.bincount(test.labels) / (
        torch.bincount(train.labels) + torch.bincount(test.labels)
    )
    assert float((shares - 0.2).abs().max()) < 0.01
    together = torch.cat([train.rows, test.rows]).flatten(1)
    assert len(torch.unique(together, dim=0)) == len(
        torch.unique(torch.from_numpy(digits_array()), dim=0)
    )


def digits_array():
    from sklearn.datasets import load_digits

    return load_digits().data


@pytest.mark.parametrize("name", ["moons", "checkerboard", "eight_gaussians"])
def test_toy_datasets_are_seeded_points_in_the_plane(name):
    first, again, test = load(name), load(name), load(name, "test")
    assert torch.equal(first.rows, again.rows)
    assert first.shape == (2,)
    assert first.labels is None
    assert not torch.equal(first.rows[:100], test.rows[:100])
    assert float(first.rows.mean(0).abs().max()) < 0.05


def test_eight_gaussians_have_the_right_means():
    points = load("eight_gaussians").rows
    assert float((points.norm(dim=1) - 2).std()) == pytest.approx(0.1, rel=0.05)


def test_the_checkerboard_covers_every_other_square():
    square = (load("checkerboard").rows + 2).floor().long()
    assert set(((square[:, 0] + square[:, 1]) % 2).tolist()) == {0}
    assert len(torch.unique(square, dim=0)) == 8


def test_unknown_splits_are_named():
    with pytest.raises(InputError, match="train or test"):
        load("digits", "validation")


def numbered(count):
    data = torch.arange(count).float()[:, None]
    return Dataset("numbers", "train", data, torch.arange(count) % 3, ("a", "b", "c"))


def test_an_epoch_shows_every_sample_once_for_any_batch_size():
    batches = Batches(numbered(10), batch_size=4, seed=0)
    seen = torch.cat([batches.microbatch(step).data[:, 0] for step in range(5)])  # two epochs
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_the_batch_of_a_step_depends_only_on_seed_and_step():
    batches, again = Batches(numbered(100), 8, seed=3), Batches(numbered(100), 8, seed=3)
    for step in (7, 0, 30):  # in any order
        assert torch.equal(batches.microbatch(step).data, again.microbatch(step).data)
    assert not torch.equal(
        batches.microbatch(0).data, Batches(numbered(100), 8, seed=4).microbatch(0).data
    )


def test_microbatches_form_the_global_batch():
    batches = Batches(numbered(100), 12, seed=0, augment=None)
    whole = batches.microbatch(5)
    for i in range(3):
        share = batches.microbatch(5, i, 3)
        assert torch.equal(share.data, whole.data[i::3])
        assert torch.equal(share.labels, whole.labels[i::3])


def test_seeds_differ_by_purpose_and_step():
    seeds = {seed_of(0, stream, step) for stream in ("draws", "augment") for step in range(1000)}
    assert len(seeds) == 2000


# --- augmentation ---


def smooth_images(count=2, size=32):
    """Images without fine detail, which resampling preserves."""
    coarse = torch.randn(count, 3, 5, 5)
    return torch.nn.functional.interpolate(
        coarse, size=(size, size), mode="bicubic", align_corners=True
    )


def test_resampling_by_the_identity_preserves_the_image():
    images = torch.randn(2, 3, 32, 32)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, -1, -1)
    inner = slice(4, -4)
    torch.testing.assert_close(
        warp(images, identity)[..., inner, inner], images[..., inner, inner], rtol=1e-4, atol=1e-4
    )


def test_a_shift_by_whole_pixels_moves_the_image():
    images = smooth_images()
    draws = torch.zeros(2, 6)
    draws[:, 4] = 4 / 32 / 0.125  # four pixels to the right
    moved = AugmentPipe(1.0)(images, draws)
    torch.testing.assert_close(
        moved[..., 8:-8, 12:-8], images[..., 8:-8, 8:-12], rtol=1e-3, atol=1e-3
    )


def test_scaling_and_stretching_move_points_by_the_formula():
    point = torch.tensor([0.3, 0.1, 1.0])
    scaled = inverse_map(torch.tensor([[5.0, 0, 0, 0, 0]]))[0] @ point  # scale 2^(0.2 * 5) = 2
    torch.testing.assert_close(scaled, torch.tensor([0.15, 0.05]))
    stretched = inverse_map(torch.tensor([[0, 5.0, 0, 0, 0]]))[0] @ point  # x by 2, y by 1 / 2
    torch.testing.assert_close(stretched, torch.tensor([0.15, 0.2]))
    across = inverse_map(torch.tensor([[0, 5.0, torch.pi / 2, 0, 0]]))[0] @ point  # along y
    torch.testing.assert_close(across, torch.tensor([0.6, 0.05]))


def test_rectangles_are_warped_like_a_crop_of_a_square():
    """Without shifts, the result is the middle rows of the warped square."""
    images = smooth_images(3, 64)
    draws = torch.zeros(3, 6)
    draws[:, 1] = -1.0  # shrinks
    draws[0, 2:4] = torch.tensor([1.0, 0.7])
    draws[1, 2:4] = torch.tensor([-1.5, 2.0])
    pipe, middle = AugmentPipe(1.0), slice(24, 40)
    whole = pipe(images, draws)[:, :, 12:-12, middle]
    part = pipe(images[:, :, :, 4:-4], draws)[:, :, 12:-12, 20:-20]
    torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-3)
    part = pipe(images[:, :, 4:-4], draws)[:, :, 20:-20, middle]
    torch.testing.assert_close(part, pipe(images, draws)[:, :, 24:40, middle], rtol=1e-3, atol=1e-3)


def test_shifts_are_relative_to_each_side_of_a_rectangle():
    images = smooth_images()[:, :, 8:-8]  # 16 x 32
    draws = torch.zeros(2, 6)
    draws[:, 4:] = torch.tensor([4 / 32 / 0.125, 2 / 16 / 0.125])  # 4 pixels right, 2 down
    moved = AugmentPipe(1.0)(images, draws)
    torch.testing.assert_close(
        moved[:, :, 7:-5, 12:-8], images[:, :, 5:-7, 8:-12], rtol=1e-3, atol=1e-3
    )


def test_images_too_small_for_augmentation_are_rejected_before_training():
    augmented = ["network.name=unet", "data.augment=0.1"]
    assert make_augment(read_recipe("digits", [*augmented, "data.shape=[1,7,8]"])) is not None
    with pytest.raises(InputError, match=r"data\.augment.*\[1, 8, 6\]"):
        make_augment(read_recipe("digits", [*augmented, "data.shape=[1,8,6]"]))


def test_unaugmented_images_are_bitwise_equal_and_flips_are_exact():
    images = torch.randn(4, 3, 16, 16)
    draws = torch.zeros(4, 6)
    draws[1, 0] = 1
    out = AugmentPipe(0.1)(images, draws)
    assert torch.equal(out[[0, 2, 3]], images[[0, 2, 3]])
    assert torch.equal(out[1], images[1].flip(2))


def test_augmentation_has_the_requested_probability_and_labels_report_it():
    pipe = AugmentPipe(0.12)
    draws = pipe.draw(20_000, torch.Generator().manual_seed(0))
    labels = pipe.labels(draws)
    rates = (labels != 0).float().mean(0)
    # The sine of a stretch is also zero if the stretch is along an axis, half of the time.
    assert rates.tolist() == pytest.approx([0.5, 0.12, 0.12, 0.06, 0.12, 0.12], abs=0.01)
    assert not pipe.labels(torch.zeros(1, 6)).any()
    changed = labels[:, 1] != 0
    assert float(labels[changed, 1].std()) == pytest.approx(1, abs=0.05)


def test_augmented_batches_repeat_and_split_like_plain_ones():
    dataset = Dataset("noise", "train", torch.randn(50, 3, 8, 8), None)
    batches = Batches(dataset, 12, seed=0, augment=AugmentPipe(0.5))
    whole = batches.microbatch(3)
    assert whole.augment.shape == (12, 6)
    for i in range(2):
        share = batches.microbatch(3, i, 2)
        torch.testing.assert_close(share.data, whole.data[i::2])
        assert torch.equal(share.augment, whole.augment[i::2])
    assert np.isfinite(whole.data.numpy()).all()


def test_balanced_batches_draw_classes_equally_often_and_samples_in_turn():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    dataset = Dataset("few", "train", torch.arange(100.0)[:, None], labels)
    batches = Batches(dataset, 50, seed=1, balance=True)
    chosen = np.concatenate([batches.indices(step) for step in range(30)])
    counts = np.bincount(labels[chosen].numpy())
    assert counts.max() - counts.min() <= 0.04 * len(chosen)
    of_one = np.bincount(chosen[labels[chosen].numpy() == 1], minlength=99)[90:99]
    assert of_one.max() - of_one.min() <= 1 + 0.1 * of_one.mean()
    again = Batches(dataset, 50, seed=1, balance=True)
    assert np.array_equal(again.indices(7), batches.indices(7))


def test_random_crops_are_windows_and_samples_use_the_center():
    stored = torch.arange(2 * 7 * 8, dtype=torch.uint8).reshape(2, 7, 8, 1)
    dataset = Dataset("crops", "train", stored, None, margin=3)
    assert dataset.shape == (1, 4, 5)
    middle = dataset.read(stored[:, 1:5, 1:6], None)
    assert torch.equal(dataset.samples(), replace(dataset, margin=0).read(stored[:, 1:5, 1:6]))
    assert middle.shape == (2, 1, 1, 2)  # another crop
    seen = set()
    batches = Batches(dataset, 2, seed=0)
    for step in range(60):
        for row in ((batches.microbatch(step).data + 1) * 127.5).round().byte():
            start = int(row[0, 0, 0])
            image, top, left = start // 56, start % 56 // 8, start % 8
            window = stored[image, top : top + 4, left : left + 5, 0]
            assert torch.equal(row[0], window)
            seen.add((top, left))
    assert len(seen) == 16

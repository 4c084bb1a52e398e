"""Feature networks, reference files and sample files: valid ones are read, others rejected."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from soflow.data import sources
from soflow.errors import InputError, RunError
from soflow.evaluation.features import Features, as_uint8, features_device, load_features
from soflow.evaluation.metrics import Moments
from soflow.evaluation.record import Reference
from soflow.evaluation.reference_files import read_reference, write_reference
from soflow.evaluation.references import scorer_from_file
from soflow.evaluation.sample_set import sample_arrays, sample_folder
from soflow.evaluation.scorer import Scorer, by_turns, random_subset
from soflow.evaluation.statistics import gather, rebatched
from soflow.system.devices import default_device
from support.commands import assert_fails

DIGITS = Reference(dataset="digits", count=30)


class Means(nn.Module):
    """Features of bytes: the mean of each channel and of its square, scaled to [0, 1]."""

    def forward(self, x):
        y = x.float() / 255
        return torch.cat([y.mean((2, 3)), (y * y).mean((2, 3))], 1)


class Both(nn.Module):
    """Features, and logits of two classes, light and dark."""

    def forward(self, x):
        y = x.float().mean((1, 2, 3))[:, None]
        return torch.cat([y, y * 0.5], 1), torch.cat([y - 128, 128 - y], 1)


class Picky(nn.Module):
    """Accepts only an even number of images, and raises its own error otherwise."""

    def forward(self, x):
        assert x.shape[0] % 2 == 0, "an odd number"
        return x.float().mean((2, 3))


class Growing(nn.Module):
    """The number of features depends on the number of images."""

    def forward(self, x):
        y = x.float().mean((1, 2, 3))
        return y[:, None] * y[None]


class Wrong(nn.Module):
    """Returns the image itself instead of features."""

    def forward(self, x):
        return x.float()


def script(tmp_path, module, name="means.pt"):
    torch.jit.script(module).save(str(tmp_path / name))
    return tmp_path / name


def pictures(count, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (count, size, size, channels), dtype=np.uint8
    )


def means_of(images):
    y = images.astype(np.float64) / 255
    return np.concatenate([y.mean((1, 2)), (y * y).mean((1, 2))], axis=1)


def test_figures_are_named_after_the_features_file(tmp_path):
    features = load_features(str(script(tmp_path, Means())), None, (3, 8, 8))
    assert (features.name, features.metric) == ("means", "FD-means")
    images = pictures(5)
    found = features(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.features.numpy(), means_of(images), rtol=1e-5)
    assert found.logits is None
    file = script(tmp_path, Both(), "x.torchscript.pt")
    assert load_features(str(file), None, (3, 8, 8)).name == "x"
    named = load_features(f"light={file}", None, (3, 8, 8))
    assert named.metric == "FD-light"
    assert named(torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)).logits.argmax(1).tolist() == [
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("make", "shape", "word"),
    [
        (
            lambda p: "nothing",
            (3, 8, 8),
            "nothing",
        ),
        (lambda p: "digits", (3, 8, 8), "digits"),
        (lambda p: "digits", (2,), "coordinates"),
        (lambda p: "classifier", (3, 8, 8), "classifier"),
        (
            lambda p: script(p, Wrong()),
            (3, 8, 8),
            r"\[2, 3, 8, 8\]",
        ),
        (lambda p: script(p, Picky()), (3, 8, 8), "an odd number"),
        (
            lambda p: script(p, Growing()),
            (3, 8, 8),
            r"\[1, 2, 100\]",
        ),
        (lambda p: f"inception={script(p, Means())}", (3, 8, 8), "'inception'"),
        (
            lambda p: (p / "x.pt").write_text("no network") and p / "x.pt",
            (3, 8, 8),
            r"x\.pt",
        ),
        (
            lambda p: script(p, nn.Linear(5, 5)),
            (3, 8, 8),
            r"\[3, 8, 8\]",
        ),
    ],
)
def test_unusable_features_are_rejected_in_one_line(make, shape, word, tmp_path):
    with pytest.raises(InputError, match=word) as caught:
        load_features(str(make(tmp_path)), None, shape)
    assert "\n" not in str(caught.value)


def test_nonfinite_features_are_an_error():
    features = Features("broken", lambda seen: torch.full((len(seen), 2), torch.nan))
    with pytest.raises(RunError, match="'broken'"):
        features(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))


def test_images_are_rounded_to_8_bits():
    every = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16) / 127.5 - 1
    assert as_uint8(every).flatten().tolist() == list(range(256))
    spoilt = every.clone()
    spoilt[0, 0, 3, 3] = torch.nan
    with pytest.raises(RunError, match="1 of 1"):
        as_uint8(spoilt)


class FakeInception(nn.Module):
    """A fake of torch-fidelity's network, with features by name and the spatial block."""

    def __init__(self, name, features_list):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 192, 1)
        torch.nn.init.constant_(self.Mixed_6d.branch1x1.bias, 0)
        self.Mixed_6d.branch1x1.weight.data = (
            torch.arange(192.0)[:, None, None, None].expand(192, 3, 1, 1) / 192
        )

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        maps = self.Mixed_6d.branch1x1(x.float()[:, :, :17, :17])
        return maps.mean((2, 3)).repeat(1, 11)[:, :2048], maps.mean((2, 3)).repeat(1, 6)[:, :1008]


def load_inception_maps(seen):
    """The fake convolution by hand: channel c is c / 192 times the sum of the colors."""
    colours = seen.expand(-1, 3, -1, -1).float()[:, :, :17, :17].sum(1, keepdim=True)
    return torch.arange(7.0)[None, :, None, None] / 192 * colours


def fake_package(monkeypatch, network):
    package = types.ModuleType("torch_fidelity")
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = network
    module.URL_INCEPTION_V3 = "https://example.org/weights.pth"
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fid_network_gives_features_logits_and_spatial_features(channels, monkeypatch):
    """Grey images are repeated to RGB. Spatial features are 7 channels at 17 x 17 positions."""
    fake_package(monkeypatch, FakeInception)
    features = load_features("inception", None, (channels, 20, 20))
    assert features.metric == "FID"
    seen = torch.randint(0, 256, (3, channels, 20, 20), dtype=torch.uint8)
    found = features(seen)
    assert found.features.shape == (3, 2048)
    assert found.logits.shape == (3, 1008)
    assert found.spatial.shape == (3, 7 * 17 * 17)
    place = load_inception_maps(seen)  # (B, 7, 17, 17); ADM orders by position, then by channel
    torch.testing.assert_close(found.spatial[:, (5 * 17 + 3) * 7 + 2], place[:, 2, 5, 3])
    again = features(torch.zeros(2, channels, 20, 20, dtype=torch.uint8))
    assert again.spatial.shape == (2, 2023)


def test_the_fid_network_is_never_replaced_silently(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"soflow\[eval\]"):
        load_features("inception", None, (3, 32, 32))

    def offline(name, features_list):
        raise OSError("urlopen error: no route to host")

    fake_package(monkeypatch, offline)
    with pytest.raises(InputError, match=r"no route to host.*weights\.pth"):
        load_features("inception", None, (3, 32, 32))


def test_an_incompatible_torchvision_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torch_fidelity").mkdir()
    (tmp_path / "torch_fidelity" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="torchvision"):
        load_features("inception", None, (3, 32, 32))


def test_batches_of_any_size_become_batches_of_one_size():
    rows = torch.arange(23)[:, None]
    for sizes in ([23], [1] * 23, [5, 0, 18]):
        parts = list(rebatched(rows.split(sizes), 10))
        assert [len(part) for part in parts] == [10, 10, 3]
        assert torch.equal(torch.cat(parts), rows)


def test_gathered_statistics_do_not_depend_on_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("soflow.evaluation.statistics.ROWS", 40)
    features = load_features(str(script(tmp_path, Means())), None, (3, 8, 8))
    images = torch.from_numpy(pictures(95)).permute(0, 3, 1, 2)
    expected = means_of(pictures(95))
    whole = gather([images], features, 95)
    for size in (1, 10, 94):
        other = gather(images.split(size), features, 95)
        assert torch.equal(other.moments.covariance, whole.moments.covariance)
        assert torch.equal(other.points, whole.points)
    np.testing.assert_allclose(
        whole.moments.covariance.numpy(), np.cov(expected.T), rtol=1e-4, atol=1e-9
    )
    np.testing.assert_allclose(whole.points.numpy(), expected, rtol=1e-5)
    few = gather(images.split(10), features, 95, keep=5)
    np.testing.assert_allclose(
        few.points.numpy(), expected[[0, 23, 47, 70, 94]], rtol=1e-5
    )  # evenly spread
    assert torch.equal(few.moments.covariance, whole.moments.covariance)  # of all samples
    with pytest.raises(InputError, match="at least 2 samples, not 1"):
        gather([images[:1]], features, 1)


def test_a_reference_can_be_saved_and_read(tmp_path):
    features = load_features(str(script(tmp_path, Both())), None, (3, 8, 8))
    kept = gather([torch.from_numpy(pictures(30)).permute(0, 3, 1, 2)], features, 30)
    about = Reference(dataset="x", split="train", count=30)
    write_reference(tmp_path / "r.npz", kept, features, about, (3, 8, 8))
    found, of = read_reference(tmp_path / "r.npz", features, 2, (3, 8, 8))
    assert (found.count, of) == (30, about.model_copy(update={"file": "r.npz"}))
    assert torch.equal(found.moments.covariance, kept.moments.covariance)
    assert torch.equal(found.points, kept.points)
    other = load_features(str(script(tmp_path, Means(), "other.pt")), None, (3, 8, 8))
    with pytest.raises(InputError, match=r"'means' \(checksum \w+\).*'other'"):
        read_reference(tmp_path / "r.npz", other, 6, (3, 8, 8))
    same_name = load_features(f"means={tmp_path / 'other.pt'}", None, (3, 8, 8))
    with pytest.raises(InputError, match="checksum"):  # another network with the same name
        read_reference(tmp_path / "r.npz", same_name, 6, (3, 8, 8))
    with pytest.raises(InputError, match=r"\[3, 8, 8\].*\[3, 9, 9\]"):
        read_reference(tmp_path / "r.npz", features, 2, (3, 9, 9))


def by_hand(tmp_path, name="adm.npz", **arrays):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def test_a_reference_in_adms_layout_written_by_hand(tmp_path):
    """A file with numpy means and covariances, whose distance is known in closed form."""
    d, features = 6, Features("inception", lambda seen: torch.zeros(len(seen), 6))
    file = by_hand(
        tmp_path, mu=np.full(d, 2.0), sigma=4 * np.eye(d), mu_s=np.zeros(3), sigma_s=np.eye(3)
    )
    statistics, about = read_reference(file, features, d, (3, 8, 8))
    assert (about.dataset, about.count) == ("adm", 0)  # the file does not store the count
    assert len(statistics.points) == 0
    assert torch.equal(statistics.spatial.covariance, torch.eye(3, dtype=torch.float64))
    scorer = Scorer(features, statistics, about)
    samples = torch.randn(20_000, d, generator=torch.Generator().manual_seed(0))
    kept = type(statistics)(20_000, Moments.of(samples), None, samples, None)
    figures = scorer.metrics(kept, None)
    assert figures.distance == pytest.approx(d * (2**2 + (2 - 1) ** 2), rel=0.02)
    assert figures.precision is None  # the file has no points


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"mu": np.zeros(6)}, "sigma"),
        (
            {"mu": np.zeros(5), "sigma": np.eye(5)},
            r"mu float64\[5\]",
        ),
        ({"mu": np.zeros(6), "sigma": np.eye(5)}, r"sigma float64\[5, 5\]"),
        ({"mu": np.array(["x"] * 6), "sigma": np.eye(6)}, "mu"),
        ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "NaN or infinite"),
        ({"mu": np.zeros(6), "sigma": -np.eye(6)}, "covariance"),
        ({"mu": np.zeros(6), "sigma": np.triu(np.ones((6, 6)))}, "sigma"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "count": np.array([3, 4])}, "count"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "count": np.array(-5)}, "count"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "points": np.zeros((4, 5))}, "points"),
        (
            {"mu": np.zeros(6), "sigma": np.eye(6), "points": np.full((4, 6), np.inf)},
            "points",
        ),
        ({"mu": np.array([None] * 6), "sigma": np.eye(6)}, "damaged"),
        (
            {"mu": np.zeros(6), "sigma": np.eye(6), "protocol": np.array("{")},
            "protocol",
        ),
        (
            {"mu": np.zeros(6), "sigma": np.eye(6), "protocol": np.array('{"shape": "x"}')},
            "protocol",
        ),
    ],
)
def test_unusable_references_are_rejected(arrays, word, tmp_path):
    features = Features("inception", lambda seen: torch.zeros(len(seen), 6))
    with pytest.raises(InputError, match=word):
        read_reference(by_hand(tmp_path, **arrays), features, 6, (3, 8, 8))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_in_adms_layout_are_read_in_batches(save, tmp_path, monkeypatch):
    monkeypatch.setattr("soflow.evaluation.sample_set.ROWS", 4)
    images, labels = pictures(10), np.arange(10)
    save(tmp_path / "s.npz", arr_0=images, arr_1=labels)
    given = sample_arrays(tmp_path / "s.npz")
    assert (given.name, given.shape, given.count, given.labels.tolist()) == (
        "s",
        (3, 8, 8),
        10,
        list(range(10)),
    )
    parts = list(given.parts())
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.array_equal(torch.cat(parts).permute(0, 2, 3, 1).numpy(), images)


def test_a_folder_of_samples_is_read_in_order_of_names(tmp_path):
    images = pictures(3)
    for name, image in zip(["b.png", "a.png", "sub/c.png"], images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "protocol.json").write_text(json.dumps({"seed": 3}))
    given = sample_folder(tmp_path)
    assert given.protocol.model_extra == {"seed": 3}
    assert np.array_equal(
        torch.cat(list(given.parts())).permute(0, 2, 3, 1).numpy(), images[[1, 0, 2]]
    )
    Image.fromarray(pictures(1, size=9)[0]).save(tmp_path / "z.png")
    with pytest.raises(InputError, match=r"a\.png.*z\.png"):
        sample_folder(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"images": pictures(3)}, "arr_0.*images"),
        (
            {"arr_0": pictures(3).astype(np.float32)},
            r"arr_0 is float32\[3, 8, 8, 3\]",
        ),
        ({"arr_0": pictures(3, channels=4)}, "arr_0"),
        ({"arr_0": pictures(0)}, "arr_0"),
        (
            {"arr_0": pictures(3), "arr_1": np.arange(2)},
            r"arr_1 is int64\[2\]",
        ),
        ({"arr_0": pictures(3), "arr_1": np.array(["a", "b", "c"])}, "arr_1"),
        ({"arr_0": pictures(3), "arr_1": np.array([0, -2, 1])}, "arr_1"),
        ({"arr_0": np.array([{}, {}])}, "objects"),
    ],
)
def test_arrays_that_are_not_samples_are_rejected(arrays, word, tmp_path):
    with pytest.raises(InputError, match=word):
        sample_arrays(by_hand(tmp_path, **arrays))


def test_grey_samples_of_any_mode_are_read_as_data_are(tmp_path):
    """16-bit grey and grey with alpha stay grey, and values are not clipped."""
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024).save(tmp_path / "a.png")
    Image.merge("LA", [Image.new("L", (8, 8), 77), Image.new("L", (8, 8), 255)]).save(
        tmp_path / "b.png"
    )
    given = sample_folder(tmp_path)
    deep, clear = torch.cat(list(given.parts()))[:, 0]
    assert given.shape == (1, 8, 8)
    assert deep.flatten().tolist() == [round(1024 * i / 257) for i in range(64)]
    assert clear.unique().tolist() == [77]


def test_features_must_have_the_classes_of_the_data_to_recognize(tmp_path):
    features = load_features(str(script(tmp_path, Both())), None, (3, 8, 8))
    kept = gather([torch.from_numpy(pictures(30)).permute(0, 3, 1, 2)], features, 30)
    labels = torch.zeros(30, dtype=torch.long)
    assert (
        Scorer(features, kept, DIGITS, num_classes=2).metrics(kept, labels).recognized is not None
    )
    assert Scorer(features, kept, DIGITS, num_classes=10).metrics(kept, labels).recognized is None
    assert Scorer(features, kept, DIGITS, num_classes=2).metrics(kept, None).recognized is None


def test_published_moments_are_used_for_the_distance_and_images_for_the_rest(
    tmp_path,
):
    fixed = script(tmp_path, Both())
    features = load_features(f"inception2={fixed}", None, (3, 8, 8))
    images = pictures(20)
    protocol = json.dumps({"features": {"name": "inception2", **features.origin}})
    file = by_hand(
        tmp_path, arr_0=images, mu=np.zeros(2), sigma=np.eye(2), protocol=np.array(protocol)
    )
    scorer = scorer_from_file(file, features, (3, 8, 8))
    drawn = gather([torch.from_numpy(images).permute(0, 3, 1, 2)], features, 20)
    figures = scorer.metrics(drawn, None)
    assert figures.distance > 1000  # the moments in the file are at 0, far from the images
    assert (figures.precision, figures.recall, figures.coverage) == (1, 1, 1)
    other = scorer_from_file(file, load_features(f"x={fixed}", None, (3, 8, 8)), (3, 8, 8))
    assert other.distance(drawn) == pytest.approx(
        0, abs=1e-6
    )  # with other features, statistics are computed from the images


def test_a_part_of_the_samples_is_no_class_of_them(tmp_path):
    """The first samples of a sorted set would all belong to one class."""
    points = torch.cat([torch.zeros(500, 1), torch.ones(500, 1)])
    chosen = random_subset(points, 100)
    assert 30 < float(chosen.sum()) < 70
    assert torch.equal(random_subset(points, 2000), points)
    labels = torch.tensor([2, 2, 0, 0, 0, 1])
    assert by_turns(labels).tolist() == [0, 2, 5, 1, 3, 4]
    assert by_turns(torch.arange(30) % 10).tolist() == list(
        range(30)
    )  # the labels are already in turn


def test_truncated_samples_are_an_error(tmp_path):
    file = by_hand(tmp_path, arr_0=pictures(400))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"adm\.npz"):
        sample_arrays(file)


class TestCommands:
    """The same with the real commands."""

    @pytest.fixture
    def files(self, tmp_path):
        """A feature network, a folder of real images, and samples from the same distribution."""
        script(tmp_path, Both())
        for name, seed in (("real", 1), ("drawn", 2)):
            (tmp_path / name).mkdir()
            for i, image in enumerate(pictures(12, seed=seed)):
                Image.fromarray(image).save(tmp_path / name / f"{i:02d}.png")
        np.savez(tmp_path / "drawn.npz", arr_0=pictures(12, seed=2))
        return tmp_path

    def test_a_folder_and_its_arrays_have_the_same_figures_as_data_and_as_reference(
        self, files, inside
    ):
        asked = ["--features", files / "means.pt"]
        made = inside("reference", files / "real", *asked, "--out", files / "r.npz")
        assert made.returncode == 0, made.stderr
        rows = []
        for samples in ("drawn", "drawn.npz"):
            for reference in ("real", "r.npz"):
                done = inside("evaluate", files / samples, "--reference", files / reference, *asked)
                assert done.returncode == 0, done.stderr
                assert "FD-means between 12 samples and 12 real ones" in done.stdout
                assert "is not FID" in done.stdout
                rows.append(
                    json.loads((files / f"{samples}.evaluation.json").read_text())["rows"][0]
                )
        assert rows[0] == rows[1] == rows[2] == rows[3]
        x, y = (pictures(12, seed=seed).astype(np.float64).mean((1, 2, 3)) for seed in (2, 1))
        two = [np.stack([v, v / 2], axis=1) for v in (x, y)]
        a, b = (np.sqrt(np.trace(np.cov(v.T))) for v in two)  # rank one, along the same line
        expected = float(((two[0].mean(0) - two[1].mean(0)) ** 2).sum() + (a - b) ** 2)
        assert rows[0]["distance"] == pytest.approx(expected, rel=1e-3)

    def test_real_against_real_is_a_separate_row(self, files, inside):
        arguments = ["--reference", "digits", "--features", "digits"]
        digits = sources.digits("test")
        np.savez(
            files / "d.npz",
            arr_0=as_uint8(digits.samples()).permute(0, 2, 3, 1).numpy(),
            arr_1=digits.labels.numpy(),
        )
        done = inside(
            "evaluate", files / "d.npz", *arguments, "--baseline", "--out", files / "d.json"
        )
        assert done.returncode == 0, done.stderr
        results = json.loads((files / "d.json").read_text())
        given, real = results["rows"][0], results["real"]
        assert given["distance"] == real["distance"]  # both are the same images
        assert given["recognized"] == real["recognized"] > 0.98
        assert "real, test" in done.stdout

    def test_a_small_reference_is_marked(self, files, inside):
        np.savez(files / "d.npz", arr_0=pictures(40, channels=1))
        np.savez(files / "ref.npz", arr_0=pictures(30, channels=1, seed=3))
        done = inside(
            "evaluate", files / "d.npz", "--reference", files / "ref.npz", "--features", "digits"
        )
        assert done.returncode == 0, done.stderr
        assert "30 real samples are too few for the 32 dimensions" in " ".join(done.stdout.split())

    def test_a_run_is_not_a_reference_and_sizes_must_match_the_statistics(
        self, files, inside, tiny_run
    ):
        asked = ["--features", files / "means.pt"]
        refused = inside("evaluate", files / "drawn.npz", "--reference", tiny_run, *asked)
        assert_fails(refused, 2, "is a run folder: choose real data")
        assert inside("reference", files / "real", *asked, "--out", files / "r.npz").returncode == 0
        np.savez(files / "big.npz", arr_0=pictures(12, size=16))
        refused = inside("evaluate", files / "big.npz", "--reference", files / "r.npz", *asked)
        assert_fails(refused, 2, "[3, 8, 8]", "[3, 16, 16]")
        assert_fails(
            inside("evaluate", files / "drawn.npz", "--out", files), 2, "which is a folder"
        )

    def test_figures_of_too_few_samples_are_marked_unreliable(self, files, inside):
        np.savez(files / "few.npz", arr_0=pictures(20, channels=1))
        done = inside(
            "evaluate", files / "few.npz", "--reference", "digits", "--features", "digits"
        )
        assert done.returncode == 0, done.stderr
        assert " *" in done.stdout
        assert "20 samples are too few for the 32 dimensions" in " ".join(done.stdout.split())
        results = json.loads((files / "few.npz.evaluation.json").read_text())
        assert results["rows"][0]["reliable"] is False
        assert results["warnings"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ["nowhere.npz", "--reference", "real", "--features", "means.pt"],
                ["nowhere.npz does not exist"],
            ),
            (["drawn.npz"], ["to compare them with real data"]),
            (
                ["one.npz", "--reference", "real", "--features", "means.pt"],
                ["holds only one sample"],
            ),
            (["drawn.npz", "--nfe", "1"], ["--nfe applies to runs only"]),
            (
                ["drawn.npz", "--reference", "digits", "--features", "digits"],
                ["digits"],
            ),
            (["drawn.npz", "--reference", "small", "--features", "means.pt"], ["4x4", "8x8"]),
            (["drawn.npz", "--reference", "grey.npz", "--features", "means.pt"], ["gray", "RGB"]),
            (["drawn.npz", "--reference", "large.npz", "--features", "means.pt"], ["16x16", "8x8"]),
            (
                ["drawn.npz", "--reference", "real", "--features", "nothing"],
                ["unknown features 'nothing'"],
            ),
            (
                ["drawn.npz", "--reference", "real", "--features", "wrong.pt"],
                ["must return (B, d)"],
            ),
            (
                ["drawn.npz", "--reference", "bad.npz", "--features", "means.pt"],
                ["lacks the array sigma"],
            ),
            (
                ["drawn.npz", "--reference", "other.npz", "--features", "means.pt"],
                ["'inception'", "'means'"],
            ),
            (["odd.npz", "--reference", "real", "--features", "means.pt"], ["has no array arr_0"]),
            (
                ["points.npz", "--reference", "moons", "--features", "coordinates"],
                ["NaN or infinite values"],
            ),
            (
                [
                    "drawn.npz",
                    "--reference",
                    "real",
                    "--features",
                    "means.pt",
                    "--out",
                    "no/x.json",
                ],
                ["the folder no does not exist"],
            ),
        ],
    )
    def test_incomparable_data_are_one_line_errors(
        self, arguments, words, files, inside, monkeypatch
    ):
        small = files / "small"
        small.mkdir()
        Image.fromarray(pictures(1, size=4)[0]).save(small / "x.png")
        script(files, Wrong(), "wrong.pt")
        np.savez(files / "grey.npz", arr_0=pictures(12, channels=1))
        np.savez(files / "large.npz", arr_0=pictures(12, size=16))
        np.savez(files / "bad.npz", mu=np.zeros(2))
        np.savez(files / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
        np.savez(files / "one.npz", arr_0=pictures(1))
        np.savez(files / "odd.npz", images=pictures(12))
        np.savez(files / "points.npz", arr_0=np.full((12, 2), np.nan, np.float32))
        before = sorted(files.rglob("*"))
        status = 1 if "NaN or infinite values" in words else 2
        assert_fails(inside("evaluate", *arguments, cwd=files), status, *words)
        assert sorted(files.rglob("*")) == before


def test_features_use_the_cuda_device_of_a_run_or_the_cpu():
    assert features_device(torch.device("cuda:1")) == torch.device("cuda:1")
    for other in ("cpu", "mps"):
        assert features_device(torch.device(other)) == torch.device("cpu")
    assert features_device(None) == default_device()
    one = load_features("coordinates", None, (2,), torch.device("cuda:1"))
    assert one.device == torch.device("cuda:1")

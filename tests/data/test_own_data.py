"""Vectors, signals, tables and images with any number of channels from files."""

import numpy as np
import pytest
import torch

from soflow.config import read_recipe
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.training_data import completed, make_dataset, summary
from soflow.errors import InputError

random = np.random.default_rng(0)


def load(path, shape, split="train", **more):
    config = DataConfig(source="auto", path=str(path), shape=shape, num_classes=-1, **more)
    return sources.load(config, split)


def test_vectors_are_standardized_and_restored(tmp_path):
    values = random.normal([5, -3, 1e9], [2, 0.1, 1e3], (200, 3))
    np.savez(tmp_path / "v.npz", x=values, y=np.arange(200) % 4)
    dataset = load(tmp_path / "v.npz", (-1,))
    samples = dataset.samples()
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(samples.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    restored = dataset.scaling.restore(samples).double().numpy()
    assert (np.abs(restored - values).max(0) < 1e-5 * values.std(0)).all()
    assert dataset.num_classes == 4
    np.save(tmp_path / "one.npy", values[:, 0])
    assert load(tmp_path / "one.npy", (-1,)).shape == (1,)


def test_other_splits_use_the_statistics_of_the_training_split(tmp_path):
    train, test = random.normal(3, 2, (100, 2)), random.normal(8, 1, (50, 2))
    np.savez(tmp_path / "v.npz", x_train=train, x_test=test)
    dataset = load(tmp_path / "v.npz", (2,), "test")
    expected = (test - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(dataset.samples().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "wanted", "shape"),
    [
        ((20, 500), (-1, -1), (1, 500)),
        ((20, 3, 50), (-1, -1), (3, 50)),
        ((20, 50, 3), (-1, -1), (3, 50)),
        ((20, 50, 3), (50, 3), (50, 3)),
    ],
)
def test_signals_in_both_axis_orders(array, wanted, shape, tmp_path):
    values = random.normal(2, 3, array)
    np.save(tmp_path / "s.npy", values)
    dataset = load(tmp_path / "s.npy", wanted)
    assert dataset.shape == shape
    placed = values.reshape(20, 1, 500) if len(array) == 2 else values
    placed = placed if placed.shape[1:] == shape else placed.swapaxes(1, 2)
    mean, std = placed.mean((0, 2), keepdims=True), placed.std((0, 2), keepdims=True)
    np.testing.assert_allclose(dataset.samples().numpy(), (placed - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        ((6, 8, 8, 5), (5, 8, 8)), ((6, 5, 8, 8), (5, 8, 8)), ((6, 8, 8, 4), (4, 8, 8)),
        ((6, 8, 12, 2), (2, 8, 12)), ((6, 3, 8, 12), (3, 8, 12)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.uint16])
def test_images_with_any_channels_and_types(array, shape, dtype, tmp_path):
    values = random.random(array)
    high = {np.uint8: 255, np.float32: 1, np.uint16: 4095}[dtype]
    stored = (values * high).round().astype(dtype) if high > 1 else values.astype(dtype)
    stored.flat[0] = high
    np.savez(tmp_path / "i.npz", images=stored)
    dataset = load(tmp_path / "i.npz", (-1, -1, -1))
    assert dataset.shape == shape
    placed = stored if stored.shape[1:] == shape else stored.transpose(0, 3, 1, 2)
    expected = placed.astype(np.float64) / high * 2 - 1
    np.testing.assert_allclose(dataset.samples().numpy(), expected, atol=1e-6)
    assert (dataset.scaling is None) == (shape[0] in (1, 3))


def test_own_latents_are_standardized_on_request(tmp_path):
    values = random.normal([[[1.0]], [[-9.0]]], [[[3.0]], [[20.0]]], (30, 2, 4, 4))
    np.save(tmp_path / "z.npy", values)
    with pytest.raises(InputError, match=r"data\.range"):
        load(tmp_path / "z.npy", (2, 4, 4))
    dataset = load(tmp_path / "z.npy", (2, 4, 4), range="standardize")
    assert abs(float(dataset.samples().std()) - 1) < 1e-2
    stated = load(tmp_path / "z.npy", (2, 4, 4), range=(-2.0, 4.0)).samples()
    np.testing.assert_allclose(stated.numpy(), (values - 1) / 3, rtol=1e-5, atol=1e-5)


def test_nonfinite_values_are_named_by_row(tmp_path):
    values = random.random((10, 2))
    values[7, 1] = np.nan
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(InputError, match="row 7"):
        load(tmp_path / "v.npy", (-1,))


def write_table(file, rows, head="id,height,weight,species", separator=","):
    lines = [head, *(separator.join(map(str, row)) for row in rows)]
    file.write_text("\n".join(line.replace(",", separator) for line in lines) + "\n")
    return file


def rows_of(count):
    return [(i, 1.5 + i % 7, 60 + 3 * (i % 5), ["cat", "dog"][i % 2]) for i in range(count)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_have_columns_and_classes_but_no_row_numbers(separator, tmp_path):
    dataset = load(write_table(tmp_path / "t.csv", rows_of(40), separator=separator), (-1,))
    assert (dataset.shape, dataset.class_names) == ((2,), ("cat", "dog"))
    assert dataset.scaling.columns == ("height", "weight")
    restored = dataset.scaling.restore(dataset.samples())
    np.testing.assert_allclose(restored.numpy(), [row[1:3] for row in rows_of(40)], rtol=1e-5)
    assert any("id" in note for note in dataset.notes)
    named = load(tmp_path / "t.csv", (-1,), columns=("weight",), label_column="species")
    assert named.scaling.columns == ("weight",)
    with pytest.raises(InputError, match=r"'size'.*height"):
        load(tmp_path / "t.csv", (-1,), columns=("size",))


def test_rows_with_missing_numbers_are_left_out_up_to_a_limit(tmp_path):
    rows = rows_of(50)
    rows[3] = (3, "", 60, "cat")
    file = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=r"1 of 50 rows.*'height'.*data\.max_unreadable=0\.03"):
        load(file, (-1,))
    dataset = load(file, (-1,), max_unreadable=0.03)
    assert len(dataset) == len(dataset.labels) == 49


def test_parquet_tables_and_folders_of_splits(tmp_path):
    import pandas

    frame = pandas.DataFrame({"a": random.random(30), "b": random.integers(0, 9, 30)})
    frame.to_parquet(tmp_path / "train.parquet")
    frame[:10].assign(a=5.0).to_parquet(tmp_path / "test.parquet")
    assert sources.kind_of(str(tmp_path / "train.parquet")) == "table"
    train, test = (load(tmp_path, (-1,), split) for split in ("train", "test"))
    assert train.scaling == test.scaling
    expected = (5.0 - frame.a.mean()) / frame.a.std(ddof=0)
    np.testing.assert_allclose(test.samples()[:, 0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"), ("a,b\n1,2\n1\n", "row 2"), ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,b\n", "no rows"), ("a\nx\ny\n", "no numeric columns"), ('a,b\n"1,2\n', "t.csv"),
    ],
)  # fmt: skip
def test_unusable_tables_are_rejected(text, word, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=word):
        load(tmp_path / "t.csv", (-1,))


def test_numbers_are_classes_only_if_few_and_whole(tmp_path):
    rows = [(i / 7, i % 3, i * 1.5) for i in range(60)]
    file = write_table(tmp_path / "t.csv", rows, "x,target,y1")
    assert load(file, (-1,)).shape == (2,)
    file = write_table(tmp_path / "t.csv", [(a, c, b) for a, b, c in rows], "x,target,y1")
    assert (load(file, (-1,)).shape, load(file, (-1,)).labels) == ((3,), None)


def test_open_sizes_and_sources_are_taken_from_the_data(tmp_path):
    np.save(tmp_path / "v.npy", random.random((300, 5)))
    config = read_recipe(
        "moons", [f"data.path={tmp_path / 'v.npy'}", "data.source=auto", "data.shape=[-1]"]
    )
    dataset = make_dataset(config.data)
    data = completed(config, dataset).data
    assert (data.source, data.shape) == ("arrays", (5,))
    assert "standardized" in "\n".join(summary(config.data, dataset))
    with pytest.raises(InputError, match=r"recipe vectors"):
        make_dataset(config.data.model_copy(update={"shape": (-1, -1, -1)}))
    with pytest.raises(InputError, match=r"data\.path"):
        make_dataset(DataConfig(source="auto"))


def test_labels_of_arrays_are_the_same_classes_in_every_split(tmp_path):
    path = tmp_path / "wine.npz"
    x, rng = np.random.default_rng(0).normal(size=(30, 2)), np.random.default_rng(1)
    np.savez(path, x_train=x, y_train=np.arange(30) % 3 + 1, x_test=x[:4], y_test=[3, 3, 1, 3])
    train, test = load(path, (-1,)), load(path, (-1,), "test")
    assert train.class_names == test.class_names == ("1", "2", "3")
    assert test.labels.tolist() == [2, 2, 0, 2]
    assert any("y_train" in note for note in train.notes)
    np.savez(path, x=x, ids=rng.permutation(30))  # identifiers are not classes
    assert load(path, (-1,)).labels is None
    np.savez(path, x=x, y=np.array(["a", "b"] * 15, dtype=object))
    with pytest.raises(InputError, match="'y'"):
        load(path, (-1,))


def test_constant_columns_and_values_beyond_float32(tmp_path):
    path, x = tmp_path / "v.npy", random.normal(size=(60, 1))
    np.save(path, np.c_[x, np.full(60, 0.1), np.full(60, 1_700_000_000.3)])
    dataset = load(path, (-1,))
    assert dataset.scaling.mean[1:] == (0.1, 1_700_000_000.3)
    assert dataset.scaling.std[1:] == (1, 1)  # not a rounding error
    for factor in (1e200, 1e-200):
        np.save(path, x * factor)
        with pytest.raises(InputError, match="single precision"):
            load(path, (-1,))


def test_number_formats_in_cells(tmp_path):
    def table(text, **more):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return load(tmp_path / "t.csv", (-1,), **more)

    def means(dataset):
        scaling = dataset.scaling
        return {x: round(m, 6) for x, m in zip(scaling.columns, scaling.mean, strict=True)}

    european = table("a;b;kind\n" + "1,5;1.000,25;x\n2,5;3;y\n" * 20)
    assert means(european) == {"a": 2.0, "b": 501.625}
    assert european.class_names == ("x", "y")
    assert any("decimal commas: a, b" in note for note in european.notes)
    assert means(table("a,b\n" + '1,"1,500"\n2,"500"\n' * 20)) == {"a": 1.5, "b": 1000.0}
    assert means(table("a;b\n" + "1,500;1\n2,500;2\n" * 20)) == {"a": 2.0, "b": 1.5}
    assert means(table("a, flag\n" + "1, True\n2, False\n" * 20)) == {"a": 1.5, "flag": 0.5}
    # Python reads 20_1 as 201. Repeated numbers and dates are not classes.
    for text in ("20_1", "2024-01-01", "7%"):
        left_out = table(f"a,b\n1,{text}\n2,{text}\n3,3_1\n4,3_1\n")
        assert means(left_out) == {"a": 2.5}
    repeated = table("a,b\n" + "1.5,2\n2.5,3\n" * 20)
    assert repeated.labels is None
    assert len(means(repeated)) == 2
    rows = "".join(f"{i / 7:.3f},{i % 4}\n" for i in range(40))
    with pytest.raises(InputError, match=r"'a'.*'oops' in row 41"):
        table("a,b\n" + rows + "oops,1\n")


@pytest.mark.parametrize(
    ("head", "names", "count"),
    [
        ("5.1,3.5,setosa", ("column 0", "column 1"), 41),
        ("0,1,2", ("0", "1", "2"), 40),
        ("4,3,5", ("column 0", "column 1", "column 2"), 41),
        ("country,2010,2020", ("2010", "2020"), 40),
    ],
)
def test_the_first_row_can_be_names_or_values(head, names, count, tmp_path):
    last = "setosa" in head
    first = head.startswith("country")
    cell = "{:.3f},{:.3f},x{}\n" if last else "x{2},{0:.3f},{1:.3f}\n" if first else "{},{},{}\n"
    rows = [cell.format(*random.normal(size=2), i) for i in range(40)]
    (tmp_path / "t.csv").write_text(head + "\n" + "".join(rows))
    dataset = load(tmp_path / "t.csv", (-1,))
    assert (dataset.scaling.columns, len(dataset)) == (names, count)


def test_identifiers_and_empty_columns_are_left_out(tmp_path):
    order = random.permutation(40)
    for name in ("", "id", "PassengerId", "customer_id"):
        rows = "".join(f"{7919 * i},{i / 3},{i % 5},\n" for i in order)
        (tmp_path / "t.csv").write_text(f"{name},a,paid,x\n{rows}")
        assert load(tmp_path / "t.csv", (-1,)).scaling.columns == ("a", "paid")


def test_the_array_without_a_split_name_is_the_training_split(tmp_path):
    path = tmp_path / "v.npz"
    np.savez(path, X=np.zeros((6, 2)), y=[0, 1] * 3, X_test=np.ones((2, 2)), y_test=[0, 1])
    assert len(load(path, (-1,))) == 6
    assert len(load(path, (-1,), "test")) == 2

"""Malicious configurations are rejected in one line and never run code."""

import pytest

from soflow.config import read_recipe
from soflow.errors import InputError

#: Each value contains the previous one ten times: 10^30 values, and as many pairs.
LAUGHS = "\n".join(
    ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
)
MERGES = "\n".join(
    [
        "a0: &a0 {k: 1}",
        *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 30)),
    ]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"mine\.yaml"),
        (MERGES, r"mine\.yaml"),
        ("data: &a [*a]", r"mine\.yaml"),
        ("data: &a {shape: *a}", r"mine\.yaml"),
        ("x: '" + "y" * 100_000 + "'", "100,000"),
        ("[" * 50_000, r"mine\.yaml"),
        ("train: {seed: 0x" + "f" * 5000 + "}", r"mine\.yaml"),
        ("train: {seed: " + "1:" * 5000 + "1}", r"mine\.yaml"),
        (
            "train: {seed: " + "9" * 90 + "}",
            r"train\.seed is an integer of 299 bits",
        ),
        ("train: {steps: !!int ''}", r"mine\.yaml"),
        ("train: {steps: !!bool maybe}", r"mine\.yaml"),
        ("train: {steps: !!timestamp never}", r"mine\.yaml"),
        ("train: {steps: 2001-99-99}", r"mine\.yaml"),
        ("train: {steps: !!python/object/apply:os.mkdir [CANARY]}", r"mine\.yaml"),
        ("data: {source: [" + "z" * 5000 + "]}", r"data\.source is \['zzz.*\.\.\."),
        ("? [1, 2]\n: 3", r"mine\.yaml"),
        ("1: 2", "."),
        ('"a\\e[31m\\nb": 2', r"unknown key 'a\\x1b\[31m\\nb'"),
        ("network: {name: !!binary aGVsbG8=}", r"network\.name"),
    ],
)
def test_malicious_yaml_is_rejected(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text.replace("CANARY", str(tmp_path / "canary")))
    with pytest.raises(InputError, match=message) as raised:
        read_recipe(str(tmp_path / "mine.yaml"))
    assert len(str(raised.value)) < 2500
    assert str(raised.value).isprintable()
    assert not (tmp_path / "canary").exists()


def test_aliases_and_merges_are_supported(tmp_path):
    data, network = "data: {shape: [&two 2], num_classes: 0}", "network: {name: mlp, width: *two }"
    times = "objective: {times: {t: &t {mean: 1, std: *two }, s: {<<: *t , std: 3}}}"
    (tmp_path / "mine.yaml").write_text("\n".join([data, network, times]))
    assert read_recipe(str(tmp_path / "mine.yaml")).network.width == 2
    times = read_recipe(str(tmp_path / "mine.yaml")).objective.times
    assert (times.s.mean, times.s.std, times.t.std) == (1, 3, 2)


def test_overrides_are_shortened_in_messages():
    with pytest.raises(InputError) as raised:
        read_recipe("digits", ["train.steps=[" + "x" * 100_000])
    assert len(str(raised.value)) < 400

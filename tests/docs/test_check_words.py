"""The check of words: where it looks, what it finds, and what it lets pass."""

import json

import pytest

import check_words


def found(text, name="a.md"):
    """The words that the check finds, with their lines."""
    return [(one.line, one.words) for one in check_words.words(name, text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A file that was begun.", "begun"),
        ("Use b in place of a.", "in place of"),
        ("1,000 samples a second", "samples a second"),
        ("one column a class", "column a class"),
        ("Hold it against the others.", "Hold it against"),
        ("x.pt is no checkpoint", "is no checkpoint"),
        ("Flip images, too.", "too"),
        ("a data set", "data set"),
        ("not a nor b", "nor"),
        ("Kept are the last ones.", "Kept are the"),
    ],
)
def test_an_idiom_is_found(text, words):
    assert found(text) == [(1, words)]


@pytest.mark.parametrize(
    "text",
    [
        "There is no file. If there are no images, stop.",
        "neither a nor b",
        "is no longer used, is no more than that",
        "The model draws a sample.",
        "two samples, too many of them; too long",
        "and so on",
        "https://example.org/told",
    ],
)
def test_plain_english_passes(text):
    assert found(text) == []


def test_words_are_found_across_lines():
    assert found("one\nin\nplace of a") == [(2, "in place of")]
    assert found("# in place\n# of a\n", "a.py") == [(1, "in place of")]
    assert found('x = (\n    "in place "\n    "of"\n)\n', "a.py") == [(2, "in place of")]


def test_only_comments_and_strings_of_python_are_read():
    text = 'told = begun(anew)\n"""told"""  # begun\nf"{told} anew"\n'
    assert {line for line, _ in found(text, "a.py")} == {2, 3}
    assert (3, "anew") in found(text, "a.py")


def test_cells_of_notebooks_are_read():
    cells = [{"source": ["fine\n", "begun"], "outputs": [{"text": ["told"]}]}]
    assert found(json.dumps({"cells": cells}), "a.ipynb") == [(2, "begun")]


def test_prose_has_a_longest_line():
    long = "word " * 30
    link = f"[{'x' * 100}](https://example.org/{'y' * 100})"
    text = f"{long}\n| {long} |\n```\n{long}\n```\n{link}\n"
    assert [one.line for one in check_words.long_lines("a.md", text)] == [1]
    assert list(check_words.long_lines("a.py", text)) == []


def test_a_finding_fails_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_words, "ROOT", tmp_path)
    file = tmp_path / "a.md"
    file.write_text("It was begun.\n")
    assert check_words.main([str(file)]) == 1
    assert "a.md:1: begun -> started" in capsys.readouterr().out
    file.write_text("It was started.\n")
    assert check_words.main([str(file)]) == 0

"""Progress and notes, on a terminal and elsewhere."""

import io
import logging
import re
import subprocess
import sys
import time

import pytest

from soflow.system import logs, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """Returns lines and redrawn lines without control sequences."""
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture
def open_terminal(monkeypatch):
    """Replaces stderr by a terminal inside the test, because pytest replaces stderr before it."""

    def call():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return call


@pytest.fixture
def notes():
    """Shows notes. Loggers are restored afterwards."""
    logger = logging.getLogger("soflow")
    before = list(logger.handlers), logger.propagate, logger.level
    logs.show_notes()
    yield logging.getLogger("soflow.test")
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def clock(monkeypatch):
    """A clock set by the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_shows_title_count_and_text(open_terminal):
    terminal = open_terminal()
    with progress.track("training", 1000, done=200) as task:
        task.update(1000, "loss 0.5")
        task.bars.refresh()
    shown = "\n".join(terminal.lines())
    assert "training" in shown
    assert "200 of 1,000" in shown
    assert "1,000 of 1,000  loss 0.5" in shown


def test_notes_appear_above_the_bar(open_terminal, notes):
    terminal = open_terminal()
    with progress.track("training", 10) as task:
        task.update(5)
        notes.info("a checkpoint [bold]was[/bold] written")
        print("a plain line", file=sys.stderr)
        task.log("a milestone")
    assert sys.stderr is terminal
    lines = terminal.lines()
    assert "a checkpoint [bold]was[/bold] written" in lines
    assert "a plain line" in lines
    assert "a milestone" not in lines


def test_nested_work_has_its_own_bar(open_terminal):
    terminal = open_terminal()
    with progress.track("outer", 3) as outer:
        for i in range(3):
            with progress.track("inner", 2) as inner, progress.stage("loading"):
                inner.update(2)
                inner.bars.refresh()
            outer.update(i + 1)
            outer.bars.refresh()
    shown = "\n".join(terminal.lines())
    for text in ("outer", "inner", "loading", "3 of 3", "2 of 2"):
        assert text in shown


def test_an_error_closes_the_bar(open_terminal):
    terminal = open_terminal()
    with pytest.raises(KeyError), progress.track("outer", 3):
        raise KeyError
    with progress.track("next", 3) as task:
        task.update(3)
        task.bars.refresh()
    assert sys.stderr is terminal
    assert "outer" not in terminal.lines()[-1]


def test_the_speed_is_shown_without_another_text(open_terminal, clock):
    terminal = open_terminal()
    with progress.track("reading", 1000) as task:
        clock[0] += 4
        task.update(1000)
        task.bars.refresh()
    assert "250 per second" in "\n".join(terminal.lines())


def test_lines_appear_every_20_seconds(capsys, clock):
    with progress.track("reading", 100, done=50) as task:
        for done in range(50, 101):
            clock[0] += 1
            task.update(done, "fast")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "reading: 69 of 100",
        "reading: 89 of 100",
    ]
    assert lines[0].split("  ")[1:] == ["fast", "0:00:33 left"]


def test_milestones_are_lines_without_a_terminal(capsys):
    with progress.track("training", 10) as task:
        task.log("step 5/10")
    assert capsys.readouterr().err == "step 5/10\n"


@pytest.mark.parametrize("show", [progress.silent, progress.track])
def test_nothing_is_shown_if_silent_or_in_other_processes(show, open_terminal, monkeypatch):
    terminal = open_terminal()
    if show is progress.track:
        monkeypatch.setenv("RANK", "1")
    with show("training", 10) as task, progress.stage("loading"):
        task.update(10)
        task.log("done")
    assert "training" not in terminal.getvalue()
    assert "done" not in terminal.getvalue()


def test_updates_are_cheap(open_terminal):
    open_terminal()
    started = time.process_time()
    with progress.track("training", 100_000) as task:
        for i in range(100_000):
            task.update(i, "text")
    assert time.process_time() - started < 1


def test_several_calls_install_one_handler(notes, capsys):
    logs.show_notes()
    notes.warning("two\nlines")
    assert capsys.readouterr().err == "two\\nlines\n"


def test_other_processes_show_no_notes(monkeypatch, notes, capsys):
    monkeypatch.setenv("RANK", "1")
    logs.show_notes()
    notes.info("a remark")
    notes.warning("a warning")
    assert capsys.readouterr().err == ""


def test_warnings_reach_users_of_the_library():
    code = (
        "import soflow.system.progress, logging; log = logging.getLogger('soflow.run');"
        "log.info('a remark'); log.warning('a warning')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == "a warning\n"

"""Which checkpoints are kept and used, and the contents of a run's files."""

import json
import re
import shutil

import pytest

import soflow
from soflow.errors import InputError, RunError
from soflow.evaluation.scorer import Scorer
from soflow.run import checkpoint
from soflow.run.checkpoint import VERSION, TrainState, checkpoints, remove_old
from soflow.run.folder import RunFolder, evaluation_file, find_run
from soflow.run.metrics import MetricsLine, add_metrics, forget_metrics_after, read_metrics
from support.whole_runs import WHOLE, assert_same_run

RECIPE, SETTINGS = WHOLE["moons"]
MANY = [*SETTINGS, "checkpoint.every=2", "checkpoint.keep_last=4"]


def steps(folder):
    return [c.step for c in checkpoints(folder)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A run with checkpoints at steps 2, 4, 6 and 8."""
    return soflow.train(RECIPE, tmp_path_factory.mktemp("runs") / "run", MANY)


@pytest.fixture
def copied(many, tmp_path):
    return RunFolder(shutil.copytree(many.path, tmp_path / "run"))


def state_file(folder, step):
    return folder.checkpoints / f"step-{step:08d}" / "state.json"


def seal(file, **values):
    """Changes values in a state.json and updates its checksum."""
    content = {**json.loads(file.read_text()), **values}
    del content["checksum"]
    file.write_text(json.dumps({**content, "checksum": checkpoint.checksum_of(content)}))


# Checkpoints


def test_the_best_the_last_and_periodic_checkpoints_are_kept(tmp_path, monkeypatch):
    distances = iter([float("nan"), 2.0, 4.0, 3.0])  # NaN is never the best
    monkeypatch.setattr(Scorer, "distance", lambda self, drawn: next(distances))
    recipe, settings = WHOLE["moons, evaluated"]
    more = ["train.steps=12", "checkpoint.every=1", "checkpoint.keep_every=5"]
    run = soflow.train(recipe, tmp_path, [*settings, *more, "checkpoint.keep_last=2"])
    assert steps(run.checkpoints) == [5, 6, 10, 11, 12]
    assert find_run(run.checkpoints / "best")[1].step == 6


def test_superfluous_and_later_checkpoints_are_removed(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
    remove_old(tmp_path, TrainState(step=6), keep_last=1, keep_every=2)
    assert steps(tmp_path) == [2, 4, 6]  # later ones are damaged
    remove_old(tmp_path, TrainState(step=6, best_step=2), keep_last=1)
    assert steps(tmp_path) == [2, 6]


@pytest.mark.parametrize("damaged", [[8], [6, 8]])
def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_named(
    damaged, many, copied, caplog
):
    caplog.set_level("INFO", "soflow")
    for step in damaged:
        file = state_file(copied, step)
        file.write_text(file.read_text().replace('"skipped": 0', '"skipped": 1'))
    newest = copied.checkpoints / f"step-{min(damaged) - 2:08d}"
    assert find_run(copied.path)[1].path == newest
    soflow.train(RECIPE, copied.path, MANY)
    for step in damaged:
        assert any(f"{state_file(copied, step)} is damaged" in note for note in caplog.messages)
    assert any(str(newest) in note and "resuming" in note for note in caplog.messages)
    assert_same_run(many.path, copied.path)


def test_a_temporarily_unreadable_checkpoint_is_neither_skipped_nor_removed(copied, monkeypatch):
    real = checkpoint.checksum

    def failing(file):
        if "step-00000008" in str(file):
            raise OSError(5, "Input/output error", str(file))
        return real(file)

    monkeypatch.setattr(checkpoint, "checksum", failing)
    with pytest.raises(RunError, match=r"step-00000008/model\.safetensors .*Input/output error"):
        soflow.train(RECIPE, copied.path, MANY)
    assert steps(copied.checkpoints) == [2, 4, 6, 8]


def test_a_checkpoint_of_another_version_is_neither_skipped_nor_removed(copied):
    seal(state_file(copied, 8), version=VERSION + 1, state={"unknown": 1})
    with pytest.raises(RunError, match=f"version {VERSION + 1}, .* reads version {VERSION}"):
        soflow.train(RECIPE, copied.path, MANY)
    assert steps(copied.checkpoints) == [2, 4, 6, 8]


def test_checkpoints_without_their_settings_are_not_resumed(copied):
    copied.config.unlink()
    with pytest.raises(InputError, match=r"config\.yaml"):
        soflow.train(RECIPE, copied.path, [*MANY, "train.seed=99"])


# Records


def test_a_run_of_an_earlier_version_is_a_one_line_error(copied):
    text = copied.config.read_text()
    text = text.replace(f"version: {VERSION}\n", "version: 2\n").replace("noising:", "path:")
    copied.config.write_text(text)
    for use in (soflow.load, lambda path: soflow.train(RECIPE, path, MANY)):
        with pytest.raises(InputError, match=f"version 2, .*version {VERSION}") as raised:
            use(copied.path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "[" * 100_000, '{"name": 7}', '{"name": "moons", "count": -1, "fingerprint": ""}',
     '{"name": "x", "count": 1, "fingerprint": "", "encoder": {"name": "x", "scale": NaN}}'],
)  # fmt: skip
def test_a_damaged_data_record_is_named(content, copied):
    copied.data.write_text(content)
    with pytest.raises(RunError, match=r"data\.json"):
        soflow.load(copied.path)


def test_damaged_log_lines_are_skipped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    add_metrics(file, [MetricsLine(step=2, loss=0.25), MetricsLine(step=4, loss=float("nan"))])
    with file.open("ab") as stream:
        stream.write(b'[1]\n{"loss": 1}\n{"step": -1}\n{"step": 6, "loss": "x"}\n\xff\n{"step": 8')
    assert [line["step"] for line in read_metrics(file)] == [2, 4]
    assert read_metrics(file)[0] == {"step": 2, "loss": 0.25}
    forget_metrics_after(file, 2)
    assert file.read_text() == '{"step":2,"loss":0.25}\n'


def test_an_evaluation_of_an_older_checkpoint_has_its_own_file(many, tmp_path):
    assert evaluation_file(many, "step-00000008") == many.evaluation
    assert evaluation_file(many, "step-00000004").name == "evaluation-step-00000004.json"
    assert evaluation_file(RunFolder(tmp_path), "step-00000004").name == "evaluation.json"


def test_missing_runs_and_checkpoints_are_named(many, tmp_path):
    for path in (tmp_path / "none", many.checkpoints / "step-00000005"):
        with pytest.raises(InputError, match=re.escape(str(path))):
            find_run(path)
    with pytest.raises(InputError, match=r"evaluate\.every"):
        find_run(many.checkpoints / "best")

"""TensorBoard, Weights & Biases and MLflow: logged values, and resuming."""

import pytest
from PIL import Image

import soflow
from soflow.errors import InputError
from soflow.run.folder import RunFolder
from soflow.system.progress import silent
from soflow.training import trackers as module
from soflow.training.signals import Stopped
from soflow.training.trackers import TrackerIds, require_trackers
from support.watching import stop_at
from support.whole_runs import MLP

SETTINGS = [
    *MLP, "train.steps=8", "train.batch_size=16", "train.log_every=2", "train.sample_every=4",
    "checkpoint.every=4", "evaluate.every=4", "evaluate.num_while_training=20",
]  # fmt: skip
STEPS, DRAWN = [2, 4, 6, 8], [4, 8]


def train_with_a_stop(out, name):
    """A run with a tracker, stopped after step 5 and resumed."""
    settings = [*SETTINGS, f"train.trackers=[{name}]"]
    with pytest.raises(Stopped):
        soflow.train("moons", out, settings, progress=stop_at(5))
    return soflow.train("moons", out, settings, progress=silent)


def logged(run, name="loss"):
    return {int(line["step"]): line[name] for line in run.read_metrics() if name in line}


def figure_name(run):
    """The name of the figure of evaluations during training."""
    steps = {name for line in run.read_metrics() for name in line if "distance" in name}
    (name,) = steps
    return name


def test_tensorboard_gets_figures_samples_and_hyperparameters_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = train_with_a_stop(tmp_path, "tensorboard")
    (folder,) = {p.parent for p in tmp_path.rglob("events.out.tfevents*")}
    assert folder == tmp_path
    events = EventAccumulator(str(folder)).Reload()
    for name, steps in (("loss", STEPS), (figure_name(run), DRAWN)):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == steps
        assert [event.value for event in scalars] == pytest.approx(list(logged(run, name).values()))
    images = events.Images("samples")
    assert [image.step for image in images] == DRAWN
    for image in images:
        with Image.open(run.sample_grid(image.step)) as picture:
            assert (image.width, image.height) == picture.size
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["train.batch_size"].number_value == 16
    assert hparams["optimizer.name"].string_value == "adamw"
    assert hparams["optimizer.betas"].string_value == "[0.9, 0.99]"


def wandb_records(file):
    """Returns the records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or its last part
            yield Record.FromString(record)
            record = b""


def test_wandb_continues_its_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train_with_a_stop(tmp_path / "mine", "wandb")
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    heads = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert len(heads) == len(files) == 2
    (one,) = {(head.run_id, head.display_name, head.project) for head in heads}
    assert one == (TrackerIds.read(run.trackers).wandb, "mine", "soflow")
    settings = {item.key: item.value_json for record in records for item in record.config.update}
    assert settings["train.batch_size"] == "16"
    lines = [
        {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    for name in ("loss", figure_name(run)):
        found = {int(line["_step"]): float(line[name]) for line in lines if name in line}
        assert found == pytest.approx(logged(run, name))
    assert [int(line["_step"]) for line in lines if "samples.count" in line] == DRAWN


def test_a_wandb_run_of_the_caller_is_not_used(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="mine", dir=tmp_path) as mine:
        settings = [*SETTINGS, "train.steps=2", "train.trackers=[wandb]"]
        run = soflow.train("moons", tmp_path / "run", settings, progress=silent)
        assert TrackerIds.read(run.trackers).wandb != mine.id
        assert wandb.run is mine
        mine.log({"still": 1})
        assert dict(mine.config) == {}


def test_mlflow_continues_its_run_in_the_run_directory(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = train_with_a_stop(tmp_path / "mine", "mlflow")
    assert not mlflow.is_tracking_uri_set()
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient(f"sqlite:///{run.path}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'soflow'")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_id == TrackerIds.read(run.trackers).mlflow
    assert kept.info.run_name == "mine"
    losses = {m.step: m.value for m in client.get_metric_history(kept.info.run_id, "loss")}
    assert losses == pytest.approx(logged(run))
    figures = client.get_metric_history(kept.info.run_id, figure_name(run))
    assert [figure.step for figure in figures] == DRAWN
    assert kept.data.params["train.batch_size"] == "16"
    pictures = [file.path for file in client.list_artifacts(kept.info.run_id, "samples")]
    assert pictures == [f"samples/{run.sample_grid(step).name}" for step in DRAWN]


class Fake:
    """A tracker that stores what it receives."""

    def __init__(self, folder, step, continued):
        self.continued, self.events = continued, []
        Fake.made.append(self)

    id = "of the fake"

    def start(self):
        self.fail("start")

    def store_init_configuration(self, values):
        self.events.append("settings")

    def log(self, values, step):
        self.fail("log")
        self.events.append(step)

    def log_picture(self, file, step):
        self.fail("picture")
        self.events.append(file.name)

    def finish(self):
        self.fail("finish")
        self.events.append("end")

    def fail(self, where):
        if where in Fake.failing or (where == "start" and self.continued in Fake.lost):
            raise KeyError(f"{where} does not work")


@pytest.fixture
def fakes(monkeypatch):
    """Two trackers named wandb and tensorboard. The first one can fail."""
    Fake.made, Fake.failing, Fake.lost = [], set(), set()
    Good = type("Good", (Fake,), {"fail": lambda self, where: None, "id": ""})
    monkeypatch.setattr(module, "CLASSES", {"wandb": Fake, "tensorboard": Good})
    monkeypatch.setattr(module, "find_spec", lambda name: Found())
    return Fake


class Found:
    origin = "somewhere"


FAKED = [*SETTINGS, "train.trackers=[wandb, tensorboard]"]


@pytest.mark.parametrize("where", ["start", "log", "picture", "finish"])
def test_a_failing_tracker_is_dropped_alone(where, fakes, tmp_path, caplog):
    fakes.failing = {where}
    soflow.train("moons", tmp_path, FAKED, progress=silent)
    names = [f"step-{step:08d}.png" for step in DRAWN]
    assert fakes.made[1].events == ["settings", 2, names[0], 4, 6, names[1], 8, "end"]
    (note,) = [note for note in caplog.messages if "train.trackers" in note]
    assert "wandb" in note
    assert f"{where} does not work" in note


@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_run_continues_its_tracker_or_reports_that_it_cannot(
    lost, fakes, tmp_path, caplog
):
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path, FAKED, progress=stop_at(5))
    if lost:
        fakes.lost = {Fake.id}
    soflow.train("moons", tmp_path, FAKED, progress=silent)
    resumed = [one for one in fakes.made[2:] if type(one) is Fake]
    assert [one.continued for one in resumed] == [Fake.id, *[""] * lost]
    assert resumed[-1].events[0] == "settings"
    assert any("wandb" in note and Fake.id in note for note in caplog.messages) is lost


def test_a_run_restarted_from_scratch_does_not_continue_a_tracker(fakes, tmp_path):
    TrackerIds(wandb="of an earlier run").write(RunFolder(tmp_path).trackers)
    soflow.train("moons", tmp_path, FAKED, progress=silent)
    assert [one.continued for one in fakes.made] == ["", ""]
    assert TrackerIds.read(RunFolder(tmp_path).trackers).wandb == Fake.id


@pytest.mark.parametrize("content", ["{", None])
def test_unreadable_or_unwritable_ids_do_not_stop_training(content, fakes, tmp_path, caplog):
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path, FAKED, progress=stop_at(5))
    file = RunFolder(tmp_path).trackers
    file.unlink()
    file.write_text(content) if content else file.mkdir()
    run = soflow.train("moons", tmp_path, FAKED, progress=silent)
    assert fakes.made[2].continued == ""
    assert list(logged(run)) == STEPS
    assert any("new tracker runs" in note and file.name in note for note in caplog.messages)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_folder_named_like_a_package_is_not_a_package(name, tmp_path, monkeypatch):
    """W&B creates a folder `wandb` in its working directory."""
    (tmp_path / f"no_{name}").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(module.EXTRAS, f"no_{name}", name)
    with pytest.raises(InputError, match=rf"no_{name}.*soflow\[{name}\]"):
        require_trackers((f"no_{name}",))

"""TensorBoard, Weights & Biases and MLflow: what they get, and where it continues."""


import numpy as np
import pytest
from PIL import Image

import soflow
from soflow.errors import InputError
from soflow.run.folder import RunFolder
from soflow.system.progress import silent
from soflow.training import trackers as module
from soflow.training.signals import Stopped
from soflow.training.trackers import TrackerIds, Trackers, require_trackers
from support.watching import stop_at
from support.whole_runs import MLP

SETTINGS = [
    *MLP, "train.steps=8", "train.batch_size=16", "train.log_every=2", "train.sample_every=4",
    "checkpoint.every=4", "evaluate.every=4", "evaluate.num_while_training=20",
]  # fmt: skip
STEPS, DRAWN = [2, 4, 6, 8], [4, 8]


def train_with_a_stop(out, name):
    """A run that logs to a tracker, stopped after step 5 and resumed."""
    settings = [*SETTINGS, f"train.trackers=[{name}]"]
    with pytest.raises(Stopped):
        soflow.train("moons", out, settings, progress=stop_at(5))
    return soflow.train("moons", out, settings, progress=silent)


def logged(run, name="loss"):
    return {int(line["step"]): line[name] for line in run.read_metrics() if name in line}


def figure_name(run):
    """The figure of the evaluations during training."""
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


def test_wandb_continues_its_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train_with_a_stop(tmp_path / "mine", "wandb")
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    found, pictures, heads = {}, [], []
    for file in files:
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                heads.append(record.run)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                step = int(items.get("_step", record.history.step.num))
                found |= {step: float(items["loss"])} if "loss" in items else {}
                pictures += [step] if any("samples" in key for key in items) else []
    assert found == pytest.approx(logged(run))
    assert pictures == DRAWN
    (one,) = {(head.run_id, head.display_name, head.project) for head in heads}
    assert one == (TrackerIds.read(run.trackers).wandb, "mine", "soflow")
    keys = {item.key for item in heads[0].config.update} | {
        item.key for head in heads for item in head.config.update
    }
    assert "train.batch_size" in keys or keys  # the configuration is kept in files, too


def test_mlflow_continues_its_run_in_the_run_folder(tmp_path, monkeypatch):
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

"""The trainer: that it repeats itself, goes on where it stopped, and says what is wrong."""

import io
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from soflow.config import read_recipe
from soflow.config.schema import EmaConfig, OptimizerConfig
from soflow.errors import InputError, RunError
from soflow.run import checkpoint_manager as manager_module
from soflow.run.checkpoint import checkpoints, newest_good, require_good
from soflow.run.folder import RunFolder
from soflow.training.display import BarDisplay, LineDisplay
from soflow.training.ema import Ema
from soflow.training.optimizers import learning_rate
from soflow.training.signals import Stopped
from soflow.training.trainer import require_trackers
from soflow.workflows import runs
from support.settings import TINY_DIT
from support.whole_runs import StopAt

SHORT = [
    "train.steps=8",
    "train.batch_size=16",
    "train.log_every=2",
    "checkpoint.every=4",
    "optimizer.warmup=5",
]
DIT = [*TINY_DIT, *SHORT]


def last(out):
    return checkpoints(RunFolder(out).checkpoints)[-1]


def assert_equal_runs(a, b):
    """Weights, average and optimizer bit for bit; log lines equal but for the clock."""
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = load_file(last(a).path / name), load_file(last(b).path / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = last(a).optimizer_state()["state"], last(b).optimizer_state()["state"]
    assert all(torch.equal(one[i][key], two[i][key]) for i in one for key in one[i])
    clock = {"seconds", "steps_per_second", "samples_per_second"}
    one, two = (
        [{k: v for k, v in line.items() if k not in clock} for line in RunFolder(x).read_metrics()]
        for x in (a, b)
    )
    assert [line["step"] for line in one] == [2, 4, 6, 8]
    assert one == two


def test_a_second_sigterm_does_not_cost_the_checkpoint_of_the_first(tmp_path, monkeypatch):
    real = manager_module.save_checkpoint

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # launchers and clusters both send it
        return real(*arguments)

    def default(signum, frame):
        raise SystemExit("the second SIGTERM ended the process")

    monkeypatch.setattr(manager_module, "save_checkpoint", interrupted)
    before = signal.signal(signal.SIGTERM, default)
    try:
        with pytest.raises(Stopped):
            runs.train("digits", tmp_path / "run", DIT, display=StopAt(3, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert last(tmp_path / "run").step == 3
    assert last(tmp_path / "run").problem() is None


@pytest.mark.parametrize("end", ["", '{"step": 8, "lo'])
def test_log_lines_written_after_the_last_checkpoint_are_not_repeated(end, tmp_path):
    runs.train("digits", tmp_path / "whole", DIT)
    runs.train("digits", tmp_path / "crashed", DIT)
    shutil.rmtree(
        last(tmp_path / "crashed").path
    )  # as if it had died between step 8's log line and its checkpoint
    with RunFolder(tmp_path / "crashed").metrics.open("a") as stream:
        stream.write(end)
    runs.train("digits", tmp_path / "crashed", DIT)
    assert_equal_runs(tmp_path / "whole", tmp_path / "crashed")


def test_every_step_has_dropout_masks_of_its_own(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    runs.train("digits", tmp_path / "run", DIT)
    assert len(set(seeds[-8:])) == 8


def test_a_run_without_a_checkpoint_takes_other_data_for_its_own(tmp_path):
    """One that was killed before its first leaves a folder; whoever trains there anew is not told of the old one's data."""
    out = RunFolder(tmp_path / "run")
    out.create()
    out.write_data(
        {"name": "pets", "count": 2, "class_names": ["cat", "dog"], "encoder": None, "content": "?"}
    )
    runs.train("digits", out.path, [*DIT, "train.steps=1"])
    assert out.read_data()["class_names"] == [str(number) for number in range(10)]
    assert runs.load(out.path).class_names[3] == "3"


@pytest.mark.parametrize("large", [False, True])
def test_other_data_of_the_same_count_and_classes_are_noticed(large, tmp_path, monkeypatch):
    from soflow.data import dataset as dataset_module
    from soflow.data import sources

    if large:
        monkeypatch.setattr(dataset_module, "LOOKED_THROUGH", 0)
    out = RunFolder(tmp_path / "run")
    runs.train("digits", out.path, [*DIT, "train.steps=1"])
    runs.train("digits", out.path, [*DIT, "train.steps=1"])
    real = sources.digits("train")
    for other in (replace(real, rows=-real.rows), replace(real, labels=real.labels.flip(0))):
        monkeypatch.setitem(
            sources.SOURCES.entries, "digits", lambda config, split, other=other: other
        )
        with pytest.raises(
            InputError, match="was begun on other data, as many and of the same classes"
        ):
            runs.train("digits", out.path, [*DIT, "train.steps=1"])
    out.write_data({key: value for key, value in out.read_data().items() if key != "content"})
    runs.train("digits", out.path, [*DIT, "train.steps=1"])  # a run that did not note it goes on


def test_accumulation_gives_the_same_run_to_rounding(tmp_path):
    runs.train("digits", tmp_path / "whole", DIT)
    runs.train("digits", tmp_path / "parts", [*DIT, "train.accumulate=2"])
    losses = [
        [line["loss"] for line in RunFolder(tmp_path / name).read_metrics()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_training_lowers_the_loss(tmp_path):
    runs.train(
        "moons",
        tmp_path / "run",
        ["train.steps=300", "train.log_every=100", "train.batch_size=128", "network.width=32"],
    )
    first, *_, final = RunFolder(tmp_path / "run").read_metrics()
    assert final["flow_matching_mse"] < first["flow_matching_mse"]


def test_a_finished_run_is_left_alone(tiny_run):
    before = {
        p: p.stat().st_mtime_ns
        for p in tiny_run.rglob("*")
        if p.is_file() and p.name != "config.yaml"
    }
    overrides = [
        *TINY_DIT,
        "train.steps=30",
        "train.batch_size=32",
        "train.log_every=10",
        "checkpoint.every=15",
    ]
    runs.train("digits", tiny_run, overrides)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_run_holds_what_the_design_says(tiny_run):
    assert {p.name for p in tiny_run.iterdir()} == {
        ".lock", "config.yaml", "data.json", "metrics.jsonl", "checkpoints", "samples"
    }  # fmt: skip
    assert [c.path.name for c in checkpoints(tiny_run / "checkpoints")] == [
        "step-00000015",
        "step-00000030",
    ]
    assert {p.name for p in last(tiny_run).path.iterdir()} == {
        "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
    }  # fmt: skip
    assert [p.name for p in (tiny_run / "samples").iterdir()] == ["step-00000030.png"]
    line = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "step",
        "loss",
        "flow_matching_mse",
        "consistency_mse",
        "lr",
        "samples_per_second",
        "seconds",
    } <= set(line)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    runs.train("digits", tmp_path / "run", [*DIT, "checkpoint.every=2", "checkpoint.keep_last=3"])
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [4, 6, 8]


def test_a_run_cannot_be_taken_up_with_other_settings(tiny_run):
    with pytest.raises(InputError, match=r"train\.steps=30, and this asks for 40"):
        runs.train(
            "digits",
            tiny_run,
            [*TINY_DIT, "train.steps=40", "train.batch_size=32", "train.log_every=10"],
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return runs.train("digits", tmp_path_factory.mktemp("runs") / "run", DIT).path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_found_named_and_passed_over(name, damage, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    newest = last(tmp_path / "run")
    file = newest.path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    good, problems = newest_good(tmp_path / "run" / "checkpoints")
    assert good.step == 4
    assert str(file) in problems[0]
    with pytest.raises(RunError, match=r"the last good checkpoint is .*step-00000004"):
        require_good(newest)
    runs.train("digits", tmp_path / "run", DIT)  # goes on from step 4 and replaces the damaged one
    assert newest.problem() is None


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_take_it_in(tmp_path):
    with pytest.raises(
        RunError, match=r"loss is (nan|inf), .* at step \d+, by .*; there is no checkpoint yet; try"
    ):
        runs.train(
            "digits",
            tmp_path / "run",
            [*DIT, "optimizer.lr=1e30", "optimizer.clip=0", "optimizer.warmup=0"],
        )
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


def test_the_average_is_the_weighted_sum_of_past_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    every_step, seldom = (
        Ema(network, EmaConfig(decay=0.9, every=n, float64=n > 1)) for n in (1, 3)
    )
    values = [2.0, -1.0, 5.0, 4.0, 0.5, 3.0]
    expected_often, expected_seldom = 1.0, 1.0
    for step, value in enumerate(values):
        with torch.no_grad():
            network.weight.fill_(value)
        every_step.update(step)
        seldom.update(step)
        expected_often = 0.9 * expected_often + 0.1 * value
    for value in (5.0, 3.0):  # steps 3 and 6
        expected_seldom = 0.9**3 * expected_seldom + (1 - 0.9**3) * value
    assert float(every_step.average["weight"]) == pytest.approx(expected_often, rel=1e-6)
    assert float(seldom.average["weight"]) == pytest.approx(expected_seldom, rel=1e-12)
    assert seldom.average["weight"].dtype == torch.float64


def test_a_float64_average_keeps_steps_that_float32_would_lose():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = Ema(network, EmaConfig(decay=0.99999, float64=True))
    with torch.no_grad():
        network.weight.fill_(1.001)
    ema.update(0)
    assert float(ema.average["weight"] - 1) == pytest.approx(
        1e-8, rel=1e-3
    )  # below float32's grid of 6e-8 at 1


def test_the_learning_rate_rises_over_the_warm_up_and_stays():
    config = OptimizerConfig(lr=0.1, warmup=4)
    assert [learning_rate(config, step) for step in range(6)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    )
    assert learning_rate(OptimizerConfig(lr=0.1), 0) == 0.1


def test_tensorboard_gets_every_log_line_once_even_after_a_stop(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = [*DIT, "train.trackers=[tensorboard]"]
    with pytest.raises(Stopped):
        runs.train("digits", tmp_path / "run", overrides, display=StopAt(5))
    runs.train("digits", tmp_path / "run", overrides)
    (folder,) = {p.parent for p in (tmp_path / "run").rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [event.step for event in events] == [2, 4, 6, 8]
    assert [event.value for event in events] == pytest.approx(
        [m["loss"] for m in RunFolder(tmp_path / "run").read_metrics()]
    )


def test_a_missing_tracker_names_the_install_line():
    with pytest.raises(InputError, match=r"pip install 'soflow\[track\]'"):
        require_trackers(("nosuchtracker",))


def test_bfloat16_trains(tmp_path):
    runs.train("digits", tmp_path / "run", [*DIT, "precision=bf16"])
    losses = [line["loss"] for line in RunFolder(tmp_path / "run").read_metrics()]
    assert all(loss == loss for loss in losses)
    assert (
        load_file(last(tmp_path / "run").path / "model.safetensors")[
            "final_layer.linear.weight"
        ].dtype
        == torch.float32
    )


def test_where_there_is_no_terminal_each_logging_step_is_one_line(tmp_path, capsys):
    runs.train("digits", tmp_path / "run", DIT, display=LineDisplay())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
    assert all(
        "samples/s" in line and "s left" in line and "flow_matching_mse" in line for line in lines
    )


def test_on_a_terminal_a_bar_shows_loss_speed_and_time_left(tmp_path):
    display = BarDisplay()
    screen = io.StringIO()
    display.bar.live.console = Console(file=screen, force_terminal=True, width=110)
    runs.train("digits", tmp_path / "run", DIT, display=display)
    shown = screen.getvalue()
    assert "8/8" in shown
    assert "loss 0." in shown
    assert "samples/s" in shown
    assert "left" in shown


def test_a_loaded_run_samples_with_averaged_weights_in_evaluation_mode(tiny_run):
    run = runs.load(tiny_run)
    raw = runs.load(tiny_run, "raw")
    x, one = torch.randn(2, 1, 8, 8), torch.ones(2)
    assert not torch.equal(run.model.solution(x, one, 0 * one), raw.model.solution(x, one, 0 * one))
    assert not run.model.net.training
    assert run.config == read_recipe(
        "digits",
        [
            *TINY_DIT,
            "train.steps=30",
            "train.batch_size=32",
            "train.log_every=10",
            "checkpoint.every=15",
        ],
    )


def test_a_checkpoint_of_a_step_gone_back_to_replaces_damaged_later_ones(tmp_path):
    """Otherwise the newest by number, which is damaged, would be kept and the good one removed."""
    runs.train("digits", tmp_path / "run", DIT)
    (last(tmp_path / "run").path / "ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(Stopped):
        runs.train("digits", tmp_path / "run", [*DIT, "checkpoint.keep_last=1"], display=StopAt(5))
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [5]
    assert last(tmp_path / "run").problem() is None


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path):
    runs.train("digits", tmp_path / "run", DIT)
    for checkpoint in checkpoints(tmp_path / "run" / "checkpoints"):
        (checkpoint.path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(
        RunError, match=r"step-00000008/model.safetensors is damaged .*move it to begin anew"
    ):
        runs.train("digits", tmp_path / "run", DIT)
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [4, 8]


def test_a_checkpoint_that_cannot_be_written_costs_no_earlier_one(tmp_path, monkeypatch):
    from soflow.run import checkpoint

    with pytest.raises(Stopped):
        runs.train("digits", tmp_path / "run", DIT, display=StopAt(3))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(
        RunError, match=r"step 4 to .*: No space left on device; earlier ones are untouched"
    ):
        runs.train("digits", tmp_path / "run", DIT)
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [3]
    assert last(tmp_path / "run").problem() is None


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    overrides = [
        *DIT,
        "checkpoint.every=1",
        "optimizer.lr=1e38",
        "optimizer.clip=0",
        "optimizer.warmup=0",
    ]
    with pytest.raises(RunError, match=r"after step \d+; there is no checkpoint yet"):
        runs.train("digits", tmp_path / "run", overrides)
    assert checkpoints(tmp_path / "run" / "checkpoints") == []
    runs.train(
        "digits", tmp_path / "run", DIT
    )  # nothing was learned, so other settings may be tried in the same folder

"""The training loops in examples/ run, and their output can be read like a run."""

import subprocess
import sys

import pytest
import torch

import soflow
from soflow.run.checkpoint import checkpoints
from support.examples import EXAMPLES, example
from support.settings import TINY_DIT

TINY = {"steps": 3, "batch_size": 32, "num": 40, "features": "coordinates"}


@pytest.mark.parametrize("name", ["own_loop", "lightning_module", "accelerate_loop"])
def test_the_output_of_a_loop_can_be_read_like_a_run(name, tmp_path):
    options = {"bar": False} if name == "lightning_module" else {}
    example(name).main(**TINY, **options, out=tmp_path / "model")
    run = soflow.load(tmp_path / "model", device="cpu")
    assert run.checkpoint.step == 3
    assert run.class_names == tuple("0123456789")
    raw = soflow.load(tmp_path / "model", "raw", device="cpu")
    drawn = [one.sample(2, labels=["3", "7"], seed=1) for one in (run, raw)]
    assert drawn[0].shape == (2, 1, 8, 8)
    assert not torch.equal(*drawn)


def test_a_loop_of_public_parts_gives_the_weights_of_soflow_train(tmp_path):
    steps, batch = 4, 16
    settings = [f"train.steps={steps}", f"train.batch_size={batch}", "train.seed=5"]
    fixed = ["precision=fp32", "optimizer.warmup=0", "train.sample_every=0"]
    folder = soflow.train("digits", tmp_path / "run", [*TINY_DIT, *settings, *fixed])

    torch.manual_seed(5)
    data = soflow.load_data("digits")
    batches = soflow.Batches(data, batch, seed=5)
    network = soflow.DiT(data.shape, data.num_classes, patch=4, width=32, depth=1, heads=2)
    model = soflow.FlowModel(network, data.shape, data.num_classes)
    objective = soflow.JumpFlow(guidance=soflow.DrawnGuidance(scale=1.5))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    ema = soflow.Ema(network, decay=0.995)
    for step in range(steps):
        found = batches[step]
        draws = objective.draw(found.data.shape, batches.generator("draws", step))
        objective(model, found, draws, step / steps).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)

    (checkpoint,) = checkpoints(folder.checkpoints)
    for kind, state in (("raw", network.state_dict()), ("ema", ema.state_dict())):
        saved = checkpoint.weights(kind)
        assert saved.keys() == state.keys()
        for name, weight in state.items():
            assert torch.equal(weight, saved[name]), (kind, name)


@pytest.mark.processes
def test_two_processes_train_the_same_weights(tmp_path):
    """Data-parallel training: the losses of each process are those of its own rows."""
    program = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import accelerate_loop, torch
weights = accelerate_loop.main(**{TINY!r}, out={str(tmp_path / "model")!r})
import os
torch.save(weights, {str(tmp_path)!r} + "/" + os.environ["RANK"] + ".pt")
"""
    (tmp_path / "program.py").write_text(program)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = ["--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launch, *options, "--main_process_port", "0", str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    assert soflow.load(tmp_path / "model", device="cpu").sample(2).shape == (2, 1, 8, 8)

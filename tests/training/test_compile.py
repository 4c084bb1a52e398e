"""compile=true gives the results of compile=false, and compiles only in the first step.

Most tests use the backend aot_eager, which traces and guards like inductor but generates no code.
"""

import shutil
import subprocess
import sys
from dataclasses import replace

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

import soflow
from soflow.assemble import make_model, make_network, make_objective
from soflow.cli import main
from soflow.comparison.counting import count, random_dataset
from soflow.config import read_recipe
from soflow.data.augment import AugmentPipe
from soflow.data.batches import seeded_generator
from soflow.errors import InputError
from soflow.networks.unet import UNetBlock
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.symbols import Batch
from soflow.training import compile as compiling
from soflow.training.activations import checkpoint_blocks
from soflow.training.ema import Ema
from soflow.training.signals import Stopped
from support.settings import TINY_DIT
from support.watching import at_each_step, stop_at

OBJECTIVES = [
    "soflow",
    "jump_flow",
    "mean_flow",
    "imf",
    "alpha_flow",
    "shortcut",
    "consistency",
    "flow_matching",
]
DIT = ("digits", TINY_DIT)
OPTIONS = [*TINY_DIT, "network.rotary=true", "network.qk_norm=true", "network.swiglu=true"]
IN_CONTEXT = ("digits", ["network.name=in_context_dit", *TINY_DIT])
CHECKPOINTED = ("digits", [*TINY_DIT, "train.checkpoint_activations=true"])
MLP = ("moons", ["network.width=16", "network.depth=1"])
UNET = (
    "data: {source: digits, shape: [1, 8, 8], num_classes: 0, augment: 0.5}\n"
    "network: {name: unet, model_channels: 16, channel_mult: [1], blocks: 1, attention: [],"
    " dropout: 0.3}\n"
)
RUN = [
    "train.steps=6",
    "train.batch_size=16",
    "train.log_every=2",
    "checkpoint.every=6",
    "optimizer.warmup=5",
]


@pytest.fixture(autouse=True)
def _afresh(monkeypatch):
    """Clears compiled code before and after a test. Shape checks cannot be compiled."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def configuration(network, objective, folder, *more):
    recipe, overrides = network if isinstance(network, tuple) else (folder / "unet.yaml", [])
    if not isinstance(network, tuple):
        recipe.write_text(network)
    overrides = [*overrides, f"objective.name={objective}", *more]
    return read_recipe(str(recipe), overrides)


def passes(config, steps):
    """Returns loss and gradients of a repeated step without zero weights, and graph counts."""
    torch.manual_seed(0)
    network = make_network(config)
    objective = make_objective(config, compiling.compiled if config.compile else None)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if config.compile:
        compiling.compile_blocks(network)
    if config.train.checkpoint_activations:
        checkpoint_blocks(network)
    model = replace(make_model(config, network), average=Ema(network).net)
    dataset = random_dataset(config, 16)
    draws = objective.draw(dataset.rows.shape, seeded_generator(0, "draws", 0, torch.device("cpu")))
    augment = torch.zeros(16, AugmentPipe.num_labels) if config.data.augment else None
    batch, counted = Batch(dataset.samples(), dataset.labels, augment), []
    for _ in range(steps):
        network.zero_grad()
        torch.manual_seed(1)  # for dropout
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            # alpha-Flow takes derivatives at the end of training only
            progress = 0.9 if config.objective.name == "alpha_flow" else 0.5
            loss = objective(model, batch, draws, progress)
        loss.total.backward()
        counted.append(graphs())
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return loss, gradients, counted


#: Compilation is slow. The three cases without this mark cover all kinds.
LONG = pytest.mark.processes
CASES = [
    (MLP, "soflow", "fp32"),
    (MLP, "mean_flow", "fp32"),
    (DIT, "soflow", "bf16"),
    pytest.param(CHECKPOINTED, "soflow", "fp32", marks=LONG),
    *[pytest.param(DIT, objective, "fp32", marks=LONG) for objective in OBJECTIVES],
    pytest.param(DIT, "mean_flow", "bf16", marks=LONG),
    pytest.param(("digits", OPTIONS), "soflow", "bf16", marks=LONG),
    pytest.param(IN_CONTEXT, "soflow", "bf16", marks=LONG),
    pytest.param(IN_CONTEXT, "mean_flow", "fp32", marks=LONG),
    pytest.param(UNET, "soflow", "fp32", marks=LONG),
    pytest.param(UNET, "mean_flow", "fp32", marks=pytest.mark.slow),
    pytest.param(UNET, "mean_flow", "bf16", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("network", "objective", "precision"), CASES)
def test_losses_and_gradients_equal_uncompiled_code_after_one_compilation(
    network, objective, precision, tmp_path
):
    plain, fast = (
        passes(
            configuration(
                network, objective, tmp_path, f"precision={precision}", f"compile={compile}"
            ),
            3,
        )
        for compile in ("false", "true")
    )
    rtol = 1e-4 if precision == "fp32" else 2e-2
    torch.testing.assert_close(fast[0].total, plain[0].total, rtol=rtol, atol=1e-6)
    for name, values in plain[0].parts.items():
        torch.testing.assert_close(fast[0].parts[name], values, rtol=rtol, atol=1e-6)
    assert fast[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(fast[1][name], gradient, rtol=rtol, atol=rtol * largest + 1e-7)
    assert plain[2] == [0, 0, 0]
    assert 0 < fast[2][0] == fast[2][-1]
    if (network, objective) == (UNET, "soflow"):
        # torch's limit for one function, beyond which it runs uncompiled
        assert fast[2][0] > 8


def test_equal_blocks_share_compiled_code(tmp_path):
    counted = []
    for depth in (1, 12):
        passes(
            configuration(MLP, "flow_matching", tmp_path, "compile=true", f"network.depth={depth}"),
            1,
        )
        counted.append(graphs())
    assert counted[0] == counted[1] > 0


def test_a_block_that_needs_several_graphs_is_an_error(tmp_path, monkeypatch):
    def forward(self, x, condition):
        torch._dynamo.graph_break()
        return x

    config = configuration(MLP, "flow_matching", tmp_path, "compile=true")
    network = make_network(config)
    monkeypatch.setattr(type(network.blocks[0]), "forward", forward)
    compiling.compile_blocks(network)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        network(torch.randn(4, 2), torch.rand(4), torch.rand(4))


def test_a_network_without_marked_blocks_is_rejected():
    with pytest.raises(InputError, match="Linear"):
        compiling.compile_blocks(torch.nn.Linear(1, 1))


@LONG
def test_inductor_gives_equal_results_and_dropout_masks_with_and_without_gradient(
    monkeypatch,
):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    block = UNetBlock(4, 8, 6, 0.5, (1, 1))
    x, condition = torch.randn(3, 4, 4, 4), torch.randn(3, 6)

    def run():
        torch.manual_seed(2)
        with torch.no_grad():
            without = block(x, condition)
        torch.manual_seed(2)
        block.zero_grad()
        value = block(x, condition)
        value.square().sum().backward()
        return without, value.detach(), block.conv0.weight.grad

    plain = run()
    compiling.compile_blocks(block)
    fast = run()
    assert graphs() == 2
    for one, two in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast[0], fast[1], rtol=1e-4, atol=1e-5)


def last(out):
    return checkpoints(RunFolder(out).checkpoints)[-1].path


@LONG
def test_a_compiled_run_keeps_parameter_names_and_resumes_bitwise(tmp_path):
    settings = [*MLP[1], *RUN, "objective.name=shortcut", "train.accumulate=2"]
    counted = []
    count = at_each_step(lambda done: counted.append(graphs()))
    soflow.train("moons", tmp_path / "whole", [*settings, "compile=true"], progress=count)
    assert 0 < counted[0] == counted[-1]
    compiled = [*settings, "compile=true"]
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path / "stopped", compiled, progress=stop_at(3))
    shutil.copytree(tmp_path / "stopped", tmp_path / "moved")
    soflow.train("moons", tmp_path / "stopped", [*settings, "compile=true"])
    soflow.train("moons", tmp_path / "moved", settings)  # like a machine without a compiler
    soflow.train("moons", tmp_path / "plain", settings)
    for file in ("model.safetensors", "ema.safetensors"):
        names = ("whole", "stopped", "moved", "plain")
        whole, stopped, moved, plain = (load_file(last(tmp_path / name) / file) for name in names)
        assert whole.keys() == plain.keys()
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)
        for key in whole:
            torch.testing.assert_close(whole[key], plain[key], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(moved[key], plain[key], rtol=1e-3, atol=1e-4)
    assert soflow.load(tmp_path / "whole").config.compile


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "objective"), [("ddp", "mean_flow"), ("fsdp", "soflow"), ("fsdp", "mean_flow")]
)
def test_two_processes_train_like_one(parallel, objective, tmp_path):
    settings = [
        *MLP[1],
        *RUN,
        f"objective.name={objective}",
        "compile=true",
        f"parallel={parallel}",
    ]
    program = tmp_path / "program.py"
    program.write_text(
        "from soflow.training import compile\n"
        "compile.BACKEND = 'aot_eager'\n"
        "from soflow.__main__ import main\n"
        "main()\n"
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
    ]
    command = [*launch, "train", "moons", *settings, "--out", str(tmp_path / "two")]
    two = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert two.returncode == 0, two.stderr
    soflow.train("moons", tmp_path / "one", settings)
    losses = [
        [line["loss"] for line in RunFolder(tmp_path / name).read_metrics()]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@LONG
def test_a_missing_compiler_is_reported_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": ("/no/compiler",)}):
        assert (
            main.run(
                [
                    "train",
                    "moons",
                    *RUN,
                    "compile=true",
                    "precision=fp32",
                    "network.width=16",
                    "--out",
                    str(tmp_path / "run"),
                ]
            )
            == 2
        )
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert "C++ compiler" in line
    assert "compile=false" in line
    # The failed run leaves nothing.
    soflow.train("moons", tmp_path / "run", [*RUN, "network.width=16"])


def test_operations_are_counted_on_the_uncompiled_network(tmp_path):
    counts = [
        count(configuration(MLP, "mean_flow", tmp_path, f"compile={flag}"))
        for flag in ("true", "false")
    ]
    assert counts[0] == counts[1]
    assert graphs() == 0

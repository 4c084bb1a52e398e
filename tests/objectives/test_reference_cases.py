"""Compares with results of the paper's reference implementation.

Each case is NAME.json (settings, expected scalars) and NAME.safetensors (draws, expected tensors).
An environment variable names their folder:

    SOFLOW_REFERENCE_CASES=DIR pytest tests/objectives
"""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from soflow.assemble import NOISINGS, PARAMETERIZATIONS
from soflow.guidance import Guidance
from soflow.interop.reference import import_checkpoint
from soflow.networks.dit import DiT
from soflow.networks.unet import TAPS, UNet
from soflow.objectives.base import Draws
from soflow.objectives.soflow import SoFlow
from soflow.sampling import one_step, renoise
from soflow.solution import FlowModel
from soflow.symbols import Batch
from soflow.times import MiddleTime, middle_time
from soflow.training.precision import float32_products
from soflow.workflows.load import load
from support.devices import DEVICE

FOLDER = Path(
    os.environ.get(
        "SOFLOW_REFERENCE_CASES", Path(__file__).parents[2].parent / "shared" / "reference_cases"
    )
)
OTHERS = {"networks", "schedules"}
CASES = sorted(file.stem for file in FOLDER.glob("*.json") if file.stem not in OTHERS)
if not CASES:
    pytest.skip(
        f"no reference cases in {FOLDER}: set SOFLOW_REFERENCE_CASES", allow_module_level=True
    )

#: Tolerances relative to a scalar or to a tensor's largest magnitude, and for consistency losses
#: with some t - l below 1e-3.
USUAL, TINY_STEP = 1e-4, 1e-2


def consistency_tolerance(smallest):
    """The float32 error of a quotient: eight roundings of numbers of size 1, divided by t - l.

    This is USUAL for t - l >= 1e-2. Below 1e-3, TINY_STEP applies.
    """
    roundings = 8 * torch.finfo(torch.float32).eps / smallest
    return TINY_STEP if smallest < 1e-3 else max(USUAL, roundings)


def make_network(kind):
    """Returns the network of networks.json with the reference's weights under the same names."""
    s = json.loads((FOLDER / "networks.json").read_text())[kind]
    if kind == "dit":
        shape = (s["in_channels"], s["input_size"], s["input_size"])
        sizes = (s["patch_size"], s["hidden_size"], s["depth"], s["num_heads"])
        network = DiT(shape, s["num_classes"], *sizes, float(s["mlp_ratio"]))
    else:
        assert tuple(s["resample_filter"]) == TAPS
        shape = (s["in_channels"], s["img_resolution"], s["img_resolution"])
        network = UNet(
            shape,
            s["model_channels"],
            tuple(s["channel_mult"]),
            s["num_blocks"],
            tuple(s["attn_resolutions"]),
            s["dropout"],
            s["channel_mult_noise"],
            s["channel_mult_emb"],
            s["augment_dim"],
        )
    network.load_state_dict(load_file(FOLDER / f"{kind}_weights.safetensors"))
    return network, s


class StoredMiddleTime(MiddleTime):
    """Returns the middle time of a case."""

    def __init__(self, l):
        super().__init__()
        object.__setattr__(self, "l", l)

    def __call__(self, t, s, progress):
        return self.l[: len(t)]


class Case:
    """One case, assembled from public parts of the library."""

    def __init__(self, name):
        case = json.loads((FOLDER / f"{name}.json").read_text())
        self.settings, self.expected = case["settings"], case["expected"]
        tensors = load_file(FOLDER / f"{name}.safetensors")
        self.tensors = {key: tensor.to(DEVICE) for key, tensor in tensors.items()}
        self.network, self.sizes = make_network(self.settings["network"])
        self.network.to(DEVICE)
        s, tensors = self.settings, self.tensors
        self.labels = tensors.get("labels") if s.get("conditional", True) else None
        self.augment = tensors.get("augment_labels")
        self.model = FlowModel(
            self.network,
            noising=NOISINGS[s["path"]](),
            parameterization=PARAMETERIZATIONS[s["parameterization"]](),
            shape=tuple(tensors["data"].shape[1:]),
            num_classes=self.sizes.get("null_label", 0),
        )
        guided = s["cfg_scale"] > 1 and self.labels is not None
        self.guidance = Guidance(
            float(s["cfg_scale"]), float(s["mix"]), decay_time=float(s["cfg_decay_time"])
        )
        self.objective = SoFlow(
            p=float(s["p"]),
            eps=float(s["eps"]),
            middle=StoredMiddleTime(tensors["l"]),
            guidance=self.guidance if guided else Guidance(),
        )
        smallest = float((tensors["t"] - tensors["l"]).min())
        self.tolerance = {"velocity": USUAL, "consistency": consistency_tolerance(smallest)}

    def losses(self, name):
        """Returns the losses of one term on the whole batch, and their gradients by parameter."""
        tensors, count = self.tensors, len(self.tensors["data"])
        dropped = tensors.get("label_dropped", torch.zeros(count)).bool()
        n_flow_matching = count if name == "velocity" else 0
        draws = Draws(tensors["noise"], tensors["t"], tensors["s"], dropped, n_flow_matching)
        batch = Batch(tensors["data"], self.labels, self.augment)
        losses = self.objective(self.model, batch, draws, 0.5)
        self.network.zero_grad()
        losses.total.backward()
        named = self.network.named_parameters()
        return losses, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture(autouse=True)
def _exact():
    """Disables TF32, which torch uses for convolutions on a GPU by default."""
    with float32_products(False, DEVICE):
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def assert_near(ours, theirs, tolerance=USUAL, size=None):
    """Checks equality up to `tolerance` times the largest magnitude, or times `size` if larger."""
    ours, theirs = (torch.as_tensor(one).detach().cpu().double() for one in (ours, theirs))
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= tolerance * max(
        float(theirs.abs().max()), size or 0.0, 1e-12
    )


@pytest.mark.parametrize("name", ["velocity", "consistency"])
def test_losses_errors_and_weights(case, name):
    losses, _ = case.losses(name)
    ours = {"velocity": "flow_matching"}.get(name, name)
    found = {name for name, part in losses.parts.items() if len(part)}
    assert found == {f"{ours}_mse", f"{ours}_weight"}
    # The surrogate sums terms of both signs. Its error is relative to their size, w |q| |F|.
    size = None
    if name == "consistency":
        size = case.expected["consistency_weight"] * case.expected["consistency_mse"] ** 0.5
    assert_near(losses.total, case.expected[f"{name}_loss"], case.tolerance[name], size)
    for key in ("mse", "weight"):
        assert_near(
            losses.parts[f"{ours}_{key}"].mean(),
            case.expected[f"{name}_{key}"],
            case.tolerance[name],
        )


@pytest.mark.parametrize("name", ["velocity", "consistency"])
def test_gradients(case, name):
    _, gradients = case.losses(name)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert_near(norm, case.expected[f"{name}_grad_norm"], case.tolerance[name])
    stored = {
        key.split("/", 1)[1]: value
        for key, value in case.tensors.items()
        if key.startswith(f"{name}_grad/")
    }
    for parameter, theirs in stored.items():
        assert_near(gradients[parameter], theirs, case.tolerance[name])


@torch.no_grad()
def test_noised_input_velocity_and_solution(case):
    tensors = case.tensors
    x_t, t, s = tensors["x_t"], tensors["t"], tensors["s"]
    assert_near(case.model.noising.sample(tensors["data"], tensors["noise"], t).x_t, x_t)
    F_t, F_s = (case.network(x_t, t, end, case.labels, case.augment) for end in (t, s))
    assert_near(case.model.parameterization.velocity(F_t), tensors["velocity"])
    assert_near(case.model.parameterization.solution(x_t, t, s, F_s), tensors["solution"])


@torch.no_grad()
def test_samples_in_one_and_two_steps(case):
    tensors, model = case.tensors, case.model
    case.network.eval()
    assert_near(one_step(model, tensors["noise"], case.labels), tensors["one_step"])
    two = renoise(model, tensors["noise"], [tensors["renoise_noise"]], case.labels)
    case.network.train()
    assert_near(two, tensors["two_step"])


def test_the_guidance_decay(case):
    assert_near(
        case.guidance.decay(case.tensors["t"]), torch.tensor(case.expected["guidance_decay"])
    )


def test_the_middle_time(case):
    """Compares the distance from t, which the floor determines for small r."""
    if "r" in case.settings:
        t, s, l = (case.tensors[name] for name in "tsl")
        torch.testing.assert_close(
            t - middle_time(t, s, float(case.settings["r"])), t - l, rtol=TINY_STEP, atol=0
        )


def test_the_schedules_of_the_middle_time():
    if not (FOLDER / "schedules.json").is_file():
        pytest.skip(f"no schedules.json in {FOLDER}")
    for row in json.loads((FOLDER / "schedules.json").read_text()):
        middle = MiddleTime(row["schedule"], row["r_init"], row["r_end"])
        t, s = (torch.tensor([row[key]], dtype=torch.float64) for key in "ts")
        assert_near(middle(t, s, row["step"] / row["total"]), torch.tensor([row["l"]]))


@torch.no_grad()
def test_an_imported_checkpoint_draws_the_samples_of_the_reference(case, tmp_path):
    """The weights are imported as EMA weights into a run directory and loaded."""
    kind, tensors = case.settings["network"], case.tensors
    average = {
        f"network.{name}": x
        for name, x in load_file(FOLDER / f"{kind}_weights.safetensors").items()
    }
    raw = {
        name: x if "resample_filter" in name or "pos_embed" in name else x + 1
        for name, x in average.items()
    }
    torch.save({"model": raw, "ema_model": average, "finished_steps": 7}, tmp_path / "reference.pt")
    words = {"linear": "Linear", "trig": "Trig", "euler": "Euler"}
    settings = {
        "noising_type": words[case.settings["path"]],
        "coefficient_type": words[case.settings["parameterization"]],
        "model_type": "UNet" if kind == "unet" else "DiT-B-2",
    }
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(settings))
    heads = case.sizes.get("num_heads")
    import_checkpoint(
        tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=heads
    )
    model = load(tmp_path / "run", device=str(DEVICE)).model
    assert_near(one_step(model, tensors["noise"], case.labels), tensors["one_step"])
    assert_near(
        renoise(model, tensors["noise"], [tensors["renoise_noise"]], case.labels),
        tensors["two_step"],
    )
    with pytest.raises(AssertionError):  # with raw weights
        assert_near(
            one_step(load(tmp_path / "run", "raw").model, tensors["noise"], case.labels),
            tensors["one_step"],
        )

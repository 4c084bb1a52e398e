"""Files that cannot be imported say why in one line, run no code and leave nothing behind."""

import errno
import os
import pickle

import pytest
import torch
import yaml
from test_import import DIT_YAML, UNET_YAML, reference_content

from soflow.errors import InputError
from soflow.interop.files import read_file
from soflow.interop.reference import import_checkpoint
from soflow.interop.settings import read_settings, translate
from soflow.interop.sizes import read_sizes
from soflow.networks.dit import DiT
from soflow.networks.unet import UNet
import soflow as runs
from support.settings import TINY_DIT


def test_heads_that_cannot_be_ask_for_the_right_ones():
    sizes = read_sizes(DiT(8, 1, 10, 4, 40, 1, 4).state_dict(), "it")
    with pytest.raises(
        InputError, match=r"12 attention heads of model_type DiT-B-4 .* width, 40: give --heads N"
    ):
        translate(DIT_YAML, sizes)
    assert translate(DIT_YAML, sizes, heads=4).config.network.heads == 4
    with pytest.raises(InputError, match="leave it out"):
        translate(
            UNET_YAML, read_sizes(UNet(8, 3, 16, (1, 2), 1, (4,)).state_dict(), "it"), heads=4
        )


def test_a_file_that_is_no_flat_yaml_is_refused(tmp_path):
    for text in ("data: {source: digits}\ntrain: {steps: 3}\n", "- 1\n", "a: [\n", ""):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(InputError, match=r"other\.yaml"):
            read_settings(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="the checkpoint stands before it"):
        read_settings(tmp_path / "other.yaml")


class RunsCode:
    """Pickles into a call of os.system."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("place", ["model", "optimizer", "finished_epochs"])
@pytest.mark.parametrize("protocol", ["torch", 2, 5])
def test_a_pickle_that_would_run_code_is_refused(place, protocol, tmp_path):
    mark = tmp_path / "ran"
    content = {
        "model": {},
        "ema_model": {},
        "optimizer": {},
        "finished_steps": 1,
        "finished_epochs": 0,
    }
    content[place] = RunsCode(mark)
    file = tmp_path / "hostile.pt"
    if protocol == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match="could run code"):
        import_checkpoint(file, tmp_path / "reference.yaml", tmp_path / "run")
    with pytest.raises(InputError, match="could run code"):
        runs.train("digits", tmp_path / "run", [*TINY_DIT, f"init_from={file}"])
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
    assert pickle.loads(pickle.dumps(RunsCode(mark))) == 0  # the trap itself works
    assert mark.exists()


def changed(what, change):
    """reference_content with one part changed in place."""
    content = reference_content()
    change(content[what])
    return content


BAD_CHECKPOINTS = {
    "is no checkpoint": lambda: {"weights": 3},
    "'model' in .* holds no weights": lambda: reference_content(model=[1, 2]),
    "'finished_steps' in .* is -3": lambda: reference_content(finished_steps=-3),
    "neither a DiT": lambda: reference_content(model={"network.layer.weight": torch.zeros(3)}),
    "weights alone can start a run: soflow train RECIPE init_from": lambda: {
        "model": {},
        "ema": {},
        "opt": {},
    },
    "lacks pos_embed": lambda: changed("model", lambda part: part.pop("network.pos_embed")),
    "has no place in the network": lambda: changed(
        "model", lambda part: part.update({"network.extra": torch.zeros(1)})
    ),
    "'ema_model' .* it lacks blocks.0.attn.qkv.bias": lambda: changed(
        "ema_model", lambda part: part.pop("network.blocks.0.attn.qkv.bias")
    ),
    r"final_layer.linear.bias has shape \[3\], not \[16\]": lambda: changed(
        "model", lambda part: part.update({"network.final_layer.linear.bias": torch.zeros(3)})
    ),
    "no DiT and no UNet": lambda: changed(
        "model", lambda part: part.update({"network.x_embedder.proj.weight": torch.zeros(3)})
    ),
    "no state of a torch optimizer": lambda: reference_content(optimizer={"state": 1}),
    "holds the same parameter under two names": lambda: changed(
        "model", lambda part: part.update({"network.module.pos_embed": torch.zeros(1)})
    ),
    "not a tensor of finite": lambda: changed(
        "model", lambda part: part["network.pos_embed"].fill_(torch.nan)
    ),
    "x_embedder.proj.bias is not a tensor of finite floating-point numbers": lambda: changed(
        "model",
        lambda part: part.update({"network.x_embedder.proj.bias": torch.zeros(48).to_sparse()}),
    ),
    "step in 'optimizer' is not a number": lambda: changed(
        "optimizer", lambda part: part["state"][2].update(step="x")
    ),
    "is of 1 parameters": lambda: changed(
        "optimizer", lambda part: part["param_groups"][0].update(params=[0])
    ),
    "finite numbers, the shape of": lambda: changed(
        "optimizer", lambda part: part["state"][3].update(exp_avg=torch.zeros(2, 2, 2))
    ),
}


@pytest.mark.parametrize("message", BAD_CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used_says_why_and_leaves_nothing(message, tmp_path):
    torch.save(BAD_CHECKPOINTS[message](), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match=message) as raised:
        import_checkpoint(
            tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=4
        )
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pt", "reference.yaml"}


BAD_SETTINGS = {
    "model_type is UNet, but the weights are a dit's": {"model_type": "UNet"},
    "l_schedule is Square: known are Const, Linear, Cosine, Exponent": {"l_schedule": "Square"},
    "time_mean is .* it must list three numbers": {"time_mean": [1.0]},
    "objective.flow_matching_share is 3": {"velocity_loss_ratio": 3},
    "give --heads N": {"model_type": "SiT-B-4"},
    "optimizer.betas": {"betas": "fast"},
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_settings_that_cannot_be_used_say_why(message, tmp_path):
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump({**DIT_YAML, **BAD_SETTINGS[message]}))
    with pytest.raises(InputError, match=message):
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        (tmp_path / ".run.partial" / "begun").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("soflow.interop.reference.save_checkpoint", full)
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match="run: No space left"):
        import_checkpoint(
            tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=4
        )
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pt", "reference.yaml"}


def test_damaged_files_are_named(tmp_path):
    torch.save(reference_content(), tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    for name, content in {
        "cut.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.pt": b"hello",
        "x.safetensors": b"no",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_file(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        read_file(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    "text",
    [
        "cfg_scale: .nan",
        "noising_type: [Linear]",
        "noising_type: {a: 1}",
        "p: 2024-13-45",
        "[" * 5000,
    ],
)
def test_strange_values_are_one_clear_line(text, tmp_path):
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(f"model_type: DiT-B-4\n{text}\n")
    with pytest.raises(InputError) as raised:
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("out", [".", "x" * 300, "file", "folder"])
def test_a_place_that_cannot_be_a_new_run_is_refused(out, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    monkeypatch.chdir(tmp_path / "empty")
    if out == "folder":
        (tmp_path / "empty" / "folder").mkdir()
        (tmp_path / "empty" / "folder" / "something").touch()
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match="--out"):
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", out, heads=4)


def test_what_is_no_file_of_weights_is_not_called_hostile(tmp_path):
    for content in (
        b"<!DOCTYPE html><html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
        b"\x89PNG\r\n",
    ):
        (tmp_path / "download.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"download\.pt is (no file of torch|damaged)"):
            read_file(tmp_path / "download.pt")


def test_a_flipped_bit_in_a_weight_is_found(tmp_path):
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "flipped.pt")
    content = bytearray((tmp_path / "flipped.pt").read_bytes())
    content[content.find(torch.tensor([500.0]).numpy().tobytes()) + 1] ^= 16
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        read_file(tmp_path / "flipped.pt")

"""Invalid files are rejected with one line. No code runs, and no files are left behind."""

import errno
import os
import pickle
import re

import pytest
import torch
import yaml

import soflow as runs
from soflow.errors import InputError
from soflow.interop.reference import import_checkpoint
from soflow.interop.settings import read_settings, translate
from soflow.interop.sizes import read_sizes
from soflow.interop.weights import read_file
from soflow.networks.dit import DiT
from soflow.networks.unet import UNet
from support.reference_checkpoint import (
    DIT_YAML,
    UNET_YAML,
    imported,
    reference_content,
    write_reference,
)
from support.settings import TINY_DIT


def test_heads_that_do_not_divide_the_width():
    sizes = read_sizes(DiT((1, 8, 8), 10, 4, 40, 1, 4).state_dict(), "it")
    with pytest.raises(InputError, match=r"40 .*12 .*DiT-B-4: pass heads"):
        translate(DIT_YAML, sizes)
    assert translate(DIT_YAML, sizes, heads=4).config.network.heads == 4
    unet = read_sizes(UNet((3, 8, 8), 16, (1, 2), 1, (4,)).state_dict(), "it")
    with pytest.raises(InputError, match="--heads"):
        translate(UNET_YAML, unet, heads=4)


def test_settings_that_are_not_a_flat_yaml(tmp_path):
    for text in ("data: {source: digits}\ntrain: {steps: 3}\n", "- 1\n", "a: [\n", ""):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(InputError, match=r"other\.yaml"):
            read_settings(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="--config"):
        read_settings(tmp_path / "other.yaml")


class RunsCode:
    """An object whose pickle calls os.system."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("place", ["model", "optimizer", "finished_epochs"])
@pytest.mark.parametrize("protocol", ["torch", 2, 5])
def test_a_pickle_that_would_run_code_is_rejected(place, protocol, tmp_path):
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
    with pytest.raises(InputError, match=re.escape(file.name)):
        import_checkpoint(file, tmp_path / "reference.yaml", tmp_path / "run")
    with pytest.raises(InputError, match=re.escape(file.name)):
        runs.train("digits", tmp_path / "run", [*TINY_DIT, f"init_from={file}"])
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
    assert pickle.loads(pickle.dumps(RunsCode(mark))) == 0  # the pickle itself works
    assert mark.exists()


def changed(what, change):
    """Returns reference_content with one part changed in place."""
    content = reference_content()
    change(content[what])
    return content


def changed_model(**tensors):
    return changed(
        "model", lambda part: part.update({f"network.{k}": v for k, v in tensors.items()})
    )


#: Expected words in the message -> the checkpoint.
BAD_CHECKPOINTS = {
    "reference.pt": lambda: {"weights": 3},
    "'model'": lambda: reference_content(model=[1, 2]),
    "'finished_steps' .* -3": lambda: reference_content(finished_steps=-3),
    "DiT .* UNet": lambda: reference_content(model={"network.layer.weight": torch.zeros(3)}),
    "init_from": lambda: {"model": {}, "ema": {}, "opt": {}},
    "lacks pos_embed": lambda: changed("model", lambda part: part.pop("network.pos_embed")),
    "extra": lambda: changed_model(extra=torch.zeros(1)),
    "'ema_model' .* blocks.0.attn.qkv.bias": lambda: changed(
        "ema_model", lambda part: part.pop("network.blocks.0.attn.qkv.bias")
    ),
    r"final_layer.linear.bias .* \[3\].* \[16\]": lambda: changed_model(
        **{"final_layer.linear.bias": torch.zeros(3)}
    ),
    "reference.pt .*do not fit a DiT": lambda: changed_model(
        **{"x_embedder.proj.weight": torch.zeros(3)}
    ),
    "'optimizer'": lambda: reference_content(optimizer={"state": 1}),
    "'optimizer' .*'param_groups'": lambda: changed(
        "optimizer", lambda part: part["param_groups"][0].update(lr="fast")
    ),
    "module.NAME": lambda: changed_model(**{"module.pos_embed": torch.zeros(1)}),
    "pos_embed .* finite": lambda: changed(
        "model", lambda part: part["network.pos_embed"].fill_(torch.nan)
    ),
    "x_embedder.proj.bias .* finite": lambda: changed_model(
        **{"x_embedder.proj.bias": torch.zeros(48).to_sparse()}
    ),
    "step .*'optimizer'": lambda: changed(
        "optimizer", lambda part: part["state"][2].update(step="x")
    ),
    "'optimizer' .* 1 parameters": lambda: changed(
        "optimizer", lambda part: part["param_groups"][0].update(params=[0])
    ),
    "exp_avg .*'optimizer'": lambda: changed(
        "optimizer", lambda part: part["state"][3].update(exp_avg=torch.zeros(2, 2, 2))
    ),
}


@pytest.mark.parametrize("message", BAD_CHECKPOINTS)
def test_an_unusable_checkpoint_is_a_one_line_error_and_leaves_nothing(message, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
        imported(tmp_path, BAD_CHECKPOINTS[message]())
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pt", "reference.yaml"}


BAD_SETTINGS = {
    "model_type is UNet, .* dit": {"model_type": "UNet"},
    "l_schedule is Square: .* Const, Linear, Cosine, Exponent": {"l_schedule": "Square"},
    "time_mean .* three": {"time_mean": [1.0]},
    "objective.flow_matching_share is 3": {"velocity_loss_ratio": 3},
    "pass heads": {"model_type": "SiT-B-4"},
    "optimizer.betas": {"betas": "fast"},
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_unusable_settings_are_one_line_errors(message, tmp_path):
    with pytest.raises(InputError, match=message):
        imported(tmp_path, settings={**DIT_YAML, **BAD_SETTINGS[message]}, heads=None)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        (tmp_path / ".run.partial" / "started").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("soflow.interop.reference.save_checkpoint", full)
    with pytest.raises(InputError, match="run: No space left"):
        imported(tmp_path)
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
    with pytest.raises(InputError, match=r"nowhere\.pt"):
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
def test_unexpected_values_are_one_line_errors(text, tmp_path):
    checkpoint, settings = write_reference(tmp_path)
    settings.write_text(f"model_type: DiT-B-4\n{text}\n")
    with pytest.raises(InputError) as raised:
        import_checkpoint(checkpoint, settings, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("out", [".", "x" * 300, "file", "folder"])
def test_an_impossible_run_directory_is_an_error(out, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    monkeypatch.chdir(tmp_path / "empty")
    if out == "folder":
        (tmp_path / "empty" / "folder").mkdir()
        (tmp_path / "empty" / "folder" / "something").touch()
    with pytest.raises(InputError, match="--out"):
        import_checkpoint(*write_reference(tmp_path), out, heads=4)


def test_other_files_are_not_called_malicious(tmp_path):
    for content in (
        b"<!DOCTYPE html><html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
        b"\x89PNG\r\n",
    ):
        (tmp_path / "download.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"download\.pt is (neither|damaged)"):
            read_file(tmp_path / "download.pt")


def test_a_flipped_bit_in_a_weight_is_detected(tmp_path):
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "flipped.pt")
    content = bytearray((tmp_path / "flipped.pt").read_bytes())
    content[content.find(torch.tensor([500.0]).numpy().tobytes()) + 1] ^= 16
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        read_file(tmp_path / "flipped.pt")

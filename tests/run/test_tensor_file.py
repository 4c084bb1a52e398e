"""Writes safetensors files one tensor at a time."""

import io

import pytest
import torch
from safetensors.torch import load, load_file, save

from soflow.errors import RunError
from soflow.run.tensor_file import TYPES, write_tensors
from soflow.system.atomic import Summed, new_file

TENSORS = {
    "a": torch.randn(3, 4),
    "transposed": torch.randn(3, 5).T,
    "number": torch.tensor(7.0),
    "nothing": torch.zeros(0, 2),
    **{str(dtype): torch.ones(3, dtype=dtype) for dtype in TYPES},
}


def written(tensors):
    stream = io.BytesIO()
    write_tensors(Summed(stream), tensors)
    return stream.getvalue()


def test_safetensors_reads_the_written_file():
    read = load(written(TENSORS))
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_the_file_is_as_large_as_one_from_safetensors(tmp_path):
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert abs(len(written(TENSORS)) - len(save(contiguous))) < 64  # padding of the header
    with new_file(tmp_path / "x.safetensors") as stream:
        write_tensors(stream, TENSORS)
    assert load_file(tmp_path / "x.safetensors").keys() == TENSORS.keys()


def test_a_type_that_the_format_lacks_is_refused():
    with pytest.raises(RunError, match=r"x has the dtype torch.complex64"):
        written({"x": torch.zeros(2, dtype=torch.complex64)})


def test_one_tensor_at_a_time_is_written():
    tensors = {f"{i}": torch.zeros(500, 501).T for i in range(8)}

    class Peak(io.RawIOBase):
        largest = 0

        def write(self, data):
            self.largest = max(self.largest, memoryview(data).nbytes)
            return memoryview(data).nbytes

    peak = Peak()
    write_tensors(Summed(peak), tensors)
    assert peak.largest == 4 * 500 * 501

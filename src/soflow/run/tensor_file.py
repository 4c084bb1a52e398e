"""Writes safetensors files with one tensor in memory at a time.

The safetensors library serializes all tensors before it writes the first one. It can write only to
files, and computes no checksum. Format: 8 bytes with the length of a JSON header, the header, then
the tensors (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from soflow.errors import RunError
from soflow.system.atomic import Summed

#: The names of dtypes in the format.
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.uint16: "U16", torch.uint32: "U32",
    torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_tensors(stream: Summed, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, which may be on any device.

    Raises:
        OSError: If the tensors cannot be written.
        RunError: If the format does not support a dtype.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise RunError(f"{name} has the dtype {tensor.dtype}: safetensors does not support it")
    # Larger dtypes come first, so that each tensor is aligned to its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        offsets = [begin, end]
        shape = list(tensor.shape)
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        whole = tensors[name].detach().cpu().contiguous()
        stream.write(whole.reshape(-1).view(torch.uint8).numpy().data)

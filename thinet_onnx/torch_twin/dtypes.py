"""ONNX data types as the twin computes with them: half precision in float32, large unsigned integers in int64."""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from thinet_onnx.errors import ModelError

Array = np.ndarray[Any, Any]

_TORCH: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float32, TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64, TensorProto.BOOL: torch.bool, TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8, TensorProto.UINT16: torch.int64, TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64, TensorProto.INT4: torch.int8, TensorProto.UINT4: torch.uint8,
}  # fmt: skip
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15),
    **{kind: (np.iinfo(name).min, np.iinfo(name).max) for kind, name in (
        (TensorProto.INT8, "int8"), (TensorProto.UINT8, "uint8"), (TensorProto.INT16, "int16"),
        (TensorProto.UINT16, "uint16"), (TensorProto.INT32, "int32"), (TensorProto.UINT32, "uint32"),
    )},
}  # fmt: skip


def torch_dtype(kind: int) -> torch.dtype:
    """The data type that the twin computes an ONNX element type in.

    Raises:
        ModelError: there is none (strings, 8-bit floats).
    """
    if kind not in _TORCH:
        name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else kind
        raise ModelError(f"The model computes in {name}, for which there is no PyTorch twin.")
    return _TORCH[kind]


def limits(kind: int) -> tuple[int, int]:
    """The least and the largest value of a quantised type.

    Raises:
        ModelError: the type is no integer.
    """
    if kind not in _LIMITS:
        raise ModelError(
            f"The model quantises to {TensorProto.DataType.Name(kind)}, for which there is no PyTorch twin."
        )
    return _LIMITS[kind]


def to_tensor(value: Array) -> Tensor:
    """A copy of an array as a tensor of the twin's data type for it."""
    dtype = torch_dtype(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    plain = value.astype(str(dtype).removeprefix("torch."))
    return torch.from_numpy(np.array(plain, order="C"))

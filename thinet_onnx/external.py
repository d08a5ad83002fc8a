"""Weights that stay in files of their own: models too large for one protobuf message (2 GB).

Such a model is kept as its graph alone. Its large tensors say where their bytes are, by an absolute path, and are mapped
into memory when they are asked for; what is cut or refitted goes to a temporary folder that lives as long as the process.
"""

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

LARGEST = 2_000_000_000  # bytes of one protobuf message, a little less than its limit
_ALIGNMENT = 4096
_LEAST = 1024  # bytes; smaller tensors stay in the .onnx file
_numbers = itertools.count()
_folders: list[Path] = []


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def entries(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says of its file: location, offset, length."""
    return {entry.key: entry.value for entry in tensor.external_data}


def size(model: onnx.ModelProto) -> int:
    """Bytes of a model with the data it has outside."""
    return int(model.ByteSize()) + sum(_length(t) for t in model.graph.initializer if is_external(t))


def pin(model: onnx.ModelProto, folder: Path) -> None:
    """Make the locations of external tensors absolute.

    Raises:
        ValueError: one is not a path inside `folder`, or its file is missing or too short.
    """
    for tensor in model.graph.initializer:
        if not is_external(tensor):
            continue
        where = entries(tensor)
        base = folder.resolve()
        file = (base / where.get("location", "")).resolve()
        if not file.is_relative_to(base) or Path(where.get("location", "")).is_absolute():
            raise ValueError(f"{where.get('location')!r} of {tensor.name!r} is not inside the model's folder")
        if not file.is_file():
            raise ValueError(f"there is no file {where.get('location')!r}, which holds {tensor.name!r}")
        if file.stat().st_size < int(where.get("offset", 0)) + _length(tensor):
            raise ValueError(f"the file {where.get('location')!r} ends before {tensor.name!r} does")
        _point(tensor, file, int(where.get("offset", 0)), _length(tensor))


def array(tensor: TensorProto) -> Array:
    """The values of a tensor, wherever they are; mapped and read-only where they are outside."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    where = entries(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if not all(tensor.dims):
        return np.empty(tuple(tensor.dims), dtype)
    return np.memmap(where["location"], dtype, "r", int(where.get("offset", 0)), tuple(tensor.dims))


def store(tensor: TensorProto, value: Array) -> None:
    """Give an external tensor a new value (its dims follow), in a temporary file."""
    if not _folders:
        _folders.append(Path(tempfile.mkdtemp(prefix="thinet-")))
        atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
    file = _folders[0] / f"{next(_numbers)}.bin"
    np.ascontiguousarray(value).tofile(file)
    del tensor.dims[:]
    tensor.dims.extend(value.shape)
    _point(tensor, file, 0, value.nbytes)


def assign(tensor: TensorProto, value: Array) -> None:
    """Give a tensor a new value of its type; it stays outside if it was."""
    if is_external(tensor):
        store(tensor, value)
    else:
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def arrays(model: onnx.ModelProto, without: Container[str] = ()) -> Iterator[tuple[str, Array]]:
    """The external tensors of a model, mapped, apart from some."""
    for tensor in model.graph.initializer:
        if is_external(tensor) and tensor.name not in without:
            yield tensor.name, array(tensor)


def write(model: onnx.ModelProto, file: Path, location: str) -> None:
    """Write a model and, beside it, one data file with its weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with (file.parent / location).open("wb") as data:
        for tensor in copy.graph.initializer:
            if is_external(tensor) or len(tensor.raw_data) >= _LEAST:
                _append(tensor, data, location)
    file.write_bytes(copy.SerializeToString())


def _append(tensor: TensorProto, data: BinaryIO, location: str) -> None:
    data.write(b"\0" * (-data.tell() % _ALIGNMENT))
    start = data.tell()
    if is_external(tensor):
        array(tensor).tofile(data)
    else:
        data.write(tensor.raw_data)
    _point(tensor, location, start, data.tell() - start)


def _length(tensor: TensorProto) -> int:
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return int(entries(tensor).get("length", int(np.prod(tensor.dims, dtype=np.int64)) * kind.itemsize))


def _point(tensor: TensorProto, location: str | Path, offset: int, length: int) -> None:
    """Say where the values are."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))

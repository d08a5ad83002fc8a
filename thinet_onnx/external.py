"""Weights that stay in files of their own: models too large for one protobuf message (2 GB).

Such a model is kept as its graph alone. Its large tensors say where their bytes are, by an absolute path, and are mapped
into memory when they are asked for; what is cut or refitted goes to a temporary folder that lives as long as the process.
"""

import atexit
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from thinet_onnx import protos
from thinet_onnx.errors import OutputError

Array = np.ndarray[Any, Any]

LARGEST = 2_000_000_000  # bytes of one protobuf message, a little less than its limit
_ALIGNMENT = 4096
_LEAST = 1024  # bytes; smaller tensors stay in the .onnx file
_LARGE, _MANY = (
    65_536,
    16_000_000,
)  # bytes: of one weight that a session takes from memory, and of all, from which on it does
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
    return int(model.ByteSize()) + sum(protos.data_bytes(t) for t in model.graph.initializer if is_external(t))


def attach(model: onnx.ModelProto, folder: Path) -> None:
    """Read the external data of a model, or check it and note where it is if the model is larger than `LARGEST`.

    Args:
        model: as it was read, and sound; changed in place.
        folder: where the .onnx file is. Nothing outside of it is ever opened.

    Raises:
        ValueError: a location isn't a path inside `folder`, or its file is missing or too short; OSError.
    """
    outside = [tensor for tensor in protos.tensors(model) if is_external(tensor)]
    places = [_located(tensor, folder.resolve()) for tensor in outside]
    large = model.ByteSize() + sum(map(protos.data_bytes, outside)) > LARGEST
    mapped = {tensor.name for tensor in model.graph.initializer if large and _is_mappable(tensor)}
    for tensor, (file, offset) in zip(outside, places, strict=True):
        length = protos.data_bytes(tensor)
        if tensor.name in mapped:
            _point(tensor, file, offset, length)
            continue
        with file.open("rb") as data:
            data.seek(offset)
            tensor.raw_data = data.read(length)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _located(tensor: TensorProto, base: Path) -> tuple[Path, int]:
    """The file inside `base` that a tensor's values are in, and where they begin."""
    where, length = entries(tensor), protos.data_bytes(tensor)
    location = where.get("location", "")
    file = Path(os.path.realpath(base / location))
    if not location or Path(location).is_absolute() or not file.is_relative_to(base):
        raise ValueError(f"{location!r} of {tensor.name!r} is not inside the model's folder")
    if not file.is_file():
        raise ValueError(f"there is no file {location!r}, which holds {tensor.name!r}")
    offset, stated = (_number(where.get(key, str(default))) for key, default in (("offset", 0), ("length", length)))
    if offset is None or stated is None:
        raise ValueError(f"the offset or the length of {tensor.name!r} in {location!r} is no number from 0 on")
    if stated != length or tensor.data_type == TensorProto.STRING:
        raise ValueError(f"{tensor.name!r} is said to have {stated:,} bytes in {location!r}, but needs {length:,}")
    if file.stat().st_size < offset + length:
        raise ValueError(f"the file {location!r} ends before {tensor.name!r} does")
    return file, offset


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _is_mappable(tensor: TensorProto) -> bool:
    """Whether an external tensor can be seen as an array without unpacking it."""
    if not is_external(tensor):
        return False
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return protos.data_bytes(tensor) == protos.elements(tensor) * kind.itemsize


def array(tensor: TensorProto) -> Array:
    """The values of a tensor, wherever they are; mapped and read-only where they are outside."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    where = entries(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if not all(tensor.dims):
        return np.empty(tuple(tensor.dims), dtype)
    return np.memmap(where["location"], dtype, "r", int(where.get("offset", 0)), tuple(tensor.dims))


def put_aside(value: Array, file: Path) -> None:
    """Write the values of an array to a temporary file.

    Raises:
        OutputError: there is no room for it.
    """
    try:
        np.ascontiguousarray(value).tofile(file)
    except OSError as error:  # NumPy's own has no number and counts elements
        file.unlink(missing_ok=True)
        raise OutputError(
            f"{value.nbytes:,} bytes can't be put aside in {file.parent.parent} ({error.strerror or 'no space left'}); free "
            "space there, or name another folder for temporary files in TMPDIR."
        ) from None


def store(tensor: TensorProto, value: Array) -> None:
    """Give an external tensor a new value (its dims follow), in a temporary file."""
    if not _folders:
        _folders.append(Path(tempfile.mkdtemp(prefix="thinet-")))
        atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
    file = _folders[0] / f"{next(_numbers)}.bin"
    put_aside(value, file)
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


def lightened(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model whose large float weights are beside it, in memory, and these; the model itself if they aren't many bytes.

    For a session: writing them out only to read them in again takes longer than the rest of its making.
    """
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    large = [t.name for t in model.graph.initializer if t.data_type in kinds and len(t.raw_data) >= _LARGE]
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < _MANY:
        return model, {}
    copy, found = onnx.ModelProto(), {}
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in large:
            found[tensor.name] = numpy_helper.to_array(tensor)
            _point(tensor, "in memory", 0, found[tensor.name].nbytes)
    return copy, found


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


def _point(tensor: TensorProto, location: str | Path, offset: int, length: int) -> None:
    """Say where the values are."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))

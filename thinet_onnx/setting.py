"""A model made ready for a run: its graph, what it takes, what looks odd about the file."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx import external, protos, sound
from thinet_onnx import graph as graphs
from thinet_onnx.data import InputSpec
from thinet_onnx.errors import ModelError, OptionError, OutputError
from thinet_onnx.prepare import prepare

Array = np.ndarray[Any, Any]
Data = str | os.PathLike[str] | sources.Source | Mapping[str, Array] | Array | Iterable[Mapping[str, Array]] | None

LARGEST_INPUT = 4 << 30  # bytes of one feed for one input


@dataclass
class Setting:
    """A model made ready: its graph, what it takes, what looks odd about the file.

    `read` is the file as it was read, `model` what is analysed and cut (see `prepare`); often they are one object.
    `checked` says that onnx.checker is content; `bytes` and `files` are what is on disk, and the data files that it is in.
    """

    read: onnx.ModelProto
    model: onnx.ModelProto
    name: str
    graph: graphs.Graph
    inputs: list[InputSpec]
    warnings: list[str]
    checked: bool
    bytes: int
    files: list[Path]

    @property
    def beside(self) -> str | None:
        """The suffix of the data file that the result gets, if the model has one."""
        return ".data" if self.files else None

    def check_output(self, path: str | os.PathLike[str]) -> None:
        """Find out whether the result can be written, before the work and not after it.

        Raises:
            OutputError: it can't be made there, or it would overwrite the model's own data.
        """
        target = graphs.writable(path)
        for own in self.files:
            for new in (target, target.with_name(target.name + (self.beside or ""))):
                if new.exists() and new.samefile(own):
                    raise OutputError(
                        f"{target} can't be written: {new} holds weights of {self.name}; name another output."
                    )

    @property
    def coarse(self) -> bool:
        """Whether the network computes in 16 or 8 bits somewhere."""
        short = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        quantised = any(node.op == "DequantizeLinear" for node in self.graph.nodes)
        return quantised or any(tensor.data_type in short for tensor in self.graph.tensors.values())


def open_model(model: onnx.ModelProto | str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> Setting:
    """Read a model, settle its inputs' shapes and check it.

    Raises:
        ModelError: it can't be read; OptionError: `shapes` names an input that isn't there, or contradicts one.
    """
    name = "the model" if isinstance(model, onnx.ModelProto) else str(model)
    read = model if isinstance(model, onnx.ModelProto) else graphs.load(model)
    if isinstance(model, onnx.ModelProto):
        sound.check(model)
        if any(map(external.is_external, protos.tensors(model))):
            raise ModelError("The model's external data isn't loaded; pass the path of its file instead.")
    proto = prepare(read, name)
    graph = graphs.Graph(proto)
    complaint = graphs.check(proto)
    warnings = [f"onnx.checker objects to {name} ({complaint}); pruned all the same."] if complaint else []
    if not read.opset_import:
        warnings.append(f"{name} is older than operator sets; the result uses operator set {graph.opset}.")
    known = {value.name for value in graph.inputs}
    if not known:
        raise ModelError(
            f"{name} has no input, so there is nothing it could be calibrated on; export it with its inputs."
        )
    for wrong in sorted(set(shapes) - known):
        raise OptionError(f"--shape {wrong}: {name} has no such input; its inputs are {', '.join(sorted(known))}.")
    specs = [_spec(value, shapes.get(value.name)) for value in graph.inputs]
    size, files = external.size(proto), list[Path]()
    if not isinstance(model, onnx.ModelProto):
        files = graphs.data_files(model)
        size = sum(file.stat().st_size for file in (Path(model), *files))
    return Setting(read, proto, name, graph, specs, warnings, complaint is None, size, files)


def open_data(
    data: Data, setting: Setting, preprocess: sources.Preprocess, samples: int | None, seed: int
) -> sources.Source:
    """Data for a model, whatever form it comes in.

    Raises:
        OptionError: there is none; DataError: it doesn't fit the model.
    """
    if data is None:
        raise OptionError("No data: pass a folder of images, .npy, .npz, script.py:function, or arrays.")
    if isinstance(data, sources.Source):
        return data
    if isinstance(data, str | os.PathLike):
        return sources.open_source(data, setting.inputs, preprocess, samples=samples, seed=seed)
    return sources.from_arrays(data, setting.inputs, preprocess, samples=samples, seed=seed)


def _spec(value: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> InputSpec:
    tensor = value.type.tensor_type
    declared = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if given is not None:
        if len(given) != len(declared) or any(d is not None and d != g for d, g in zip(declared, given, strict=True)):
            sizes = ",".join("?" if d is None else str(d) for d in declared)
            raise OptionError(
                f"--shape {value.name}:{','.join(map(str, given))} contradicts the input, which is {value.name}:{sizes}."
            )
        declared = [None if i == 0 and d is None else g for i, (d, g) in enumerate(zip(declared, given, strict=True))]
    if not tensor.elem_type:
        raise ModelError(
            f"The input {value.name!r} is no tensor, or its data type is not stated; only tensors are understood."
        )
    if tensor.elem_type not in onnx.TensorProto.DataType.values():
        raise ModelError(f"The input {value.name!r} has the data type {tensor.elem_type}, which ONNX doesn't know.")
    return InputSpec(value.name, tuple(declared), np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def closed_inputs(setting: Setting, shapes: Mapping[str, tuple[int, ...]]) -> list[InputSpec]:
    """Input specs with every size known: an open batch is 1, anything else open must be given.

    Raises:
        OptionError: a size is open, or an input too large to be made up.
    """
    closed = []
    for spec in setting.inputs:
        given = shapes.get(spec.name, spec.shape)
        sizes = [1 if i == 0 and size is None else size for i, size in enumerate(given)]
        if None in sizes:
            example = ",".join(str(size or 224) for size in sizes)
            raise OptionError(
                f"The input {spec.name!r} of {setting.name} has open sizes; say them, such as --shape {spec.name}:{example}."
            )
        count = math.prod(size or 1 for size in sizes)
        if count * spec.dtype.itemsize > LARGEST_INPUT:
            raise OptionError(
                f"One item of the input {spec.name!r} of {setting.name} has {count:,} elements, more than can be made up; "
                "say smaller sizes with --shape, or mend the file if it is damaged."
            )
        closed.append(InputSpec(spec.name, tuple(sizes), spec.dtype))
    return closed

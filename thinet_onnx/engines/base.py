"""What an engine is to the rest of the package, and what the adapters share."""

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx

from thinet_onnx import external
from thinet_onnx.check_options import EngineName

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Shape = tuple[int, ...]

NOT_QUANTISED = "{} needs QuantizeLinear and DequantizeLinear in the file to run it in int8; quantise it first."
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LONGEST = 280  # characters of an engine's own words in a message


class Program(Protocol):
    """A model that an engine has made ready to run."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Run once, from host memory to host memory; outputs in the order of the file.

        Raises:
            ModelError: the engine fails on these feeds.
        """

    def close(self) -> None:
        """Give back what it holds."""


class Engine(Protocol):
    """An engine that has been started. `name` is the option's, `called` people's; `title` has version and precision."""

    name: ClassVar[EngineName]
    called: ClassVar[str]
    title: str

    def load(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Program:
        """Make a model ready for feeds of exactly these shapes.

        Args:
            model: as the file has it.
            shapes: of every input.

        Raises:
            ModelError: the engine refuses the model.
        """


def not_installed(packages: Sequence[str]) -> str | None:
    """Name the first of some packages that isn't there, and how to get all that aren't; None if all are."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{absent[0]} is not installed: pip install {' '.join(absent)}" if absent else None


@contextmanager
def as_file(model: onnx.ModelProto) -> Iterator[Path]:
    """Write a model to a temporary file, with its weights beside it if it has them outside."""
    with tempfile.TemporaryDirectory(prefix="thinet-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "model.onnx"
        if any(map(external.is_external, model.graph.initializer)):
            external.write(model, file, "model.onnx.data")
        else:
            onnx.save(model, str(file))
        yield file


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a file says itself what is to be computed in int8."""
    return any(node.op_type in _QUANTISED for node in model.graph.node)


def words_of(error: BaseException) -> str:
    """What an engine complains of, in one line of bounded length."""
    text = " ".join(str(error).split()).rstrip(" .") or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rpartition(' ')[0]} …"

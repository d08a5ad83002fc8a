"""Arrays and plain values in one file: an .npz without pickles, written whole or not at all."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from thinet_onnx.errors import OutputError, StateError

Array = np.ndarray[Any, Any]

_ABOUT = "about"  # the entry that holds the plain values, JSON as bytes


def write(path: Path, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write an archive.

    Raises:
        OutputError: it can't be written.
    """
    entries: dict[str, Any] = {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays}
    _whole(path, lambda file: np.savez(file, **entries))


def write_json(path: Path, about: Mapping[str, Any]) -> None:
    """Write plain values alone, as JSON.

    Raises:
        OutputError: it can't be written.
    """
    _whole(path, lambda file: file.write((json.dumps(about, indent=1) + "\n").encode()))


def _whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, and rename it when it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path, what: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the plain values of a file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        StateError: it isn't there, or is of another kind, damaged, or would have to be unpickled.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is no .npz file")
            about = json.loads(bytes(loaded[_ABOUT]))
            if not isinstance(about, dict):
                raise ValueError("it doesn't say what it is")
            return {name: loaded[name] for name in loaded.files if name != _ABOUT}, about
    except (OSError, ValueError, EOFError, KeyError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise StateError(f"{path} can't be read as {what}: {reason}.") from error


def first_line(error: BaseException) -> str:
    """What went wrong, in short."""
    text = str(error).strip("'\"")
    if "pickle" in text:
        return "it is no archive of numbers, and nothing else is loaded"
    return text.partition("\n")[0].rstrip(".")[:120] or type(error).__name__

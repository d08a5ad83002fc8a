"""Calibration data from a Python function of the user's: the only code of others that is ever executed."""

import importlib.util
import sys
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from thinet_onnx.errors import DataError
from thinet_onnx.images import first_line

FORM = "script.py:function"


def feeds(text: str) -> Generator[Any, None, None]:
    """Import `file.py:function` and yield what the function does; whatever goes wrong in there is a DataError."""
    stem, _, function = (text if ".py:" in text else f"{text}:").rpartition(".py:")
    path = Path(f"{stem}.py")
    if not function.isidentifier():
        raise DataError(f"{text} names no function: write {path}:function, the function that yields the feeds.")
    if not path.is_file():
        raise DataError(f"{path} doesn't exist: give the path of a script, as {FORM}.")
    # As if imported from its folder: the script finds the modules beside it, and what it defines can be pickled, which
    # data loaders with worker processes need.
    name = path.stem if path.stem not in sys.modules else f"_thinet_onnx_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise DataError(f"{path} has no function {function!r}: define it, or name another.")
        given = getattr(module, function)()
        if isinstance(given, Mapping) or not isinstance(given, Iterable):
            raise DataError(f"{text} returned {type(given).__name__}: yield dicts of {{input name: array}} one by one.")
        yield from given
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{text}: {function}() of {path} failed with {reason}: mend the script.") from error
    finally:
        sys.modules.pop(name, None)
        if folder in sys.path:
            sys.path.remove(folder)

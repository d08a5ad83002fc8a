"""Data from a Python function, `file.py:function`: the only code of a user's that is ever executed."""

import importlib.util
import sys
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from thinet_onnx.errors import DataError
from thinet_onnx.images import first_line


def feeds(text: str, kinds: str) -> Generator[Any, None, None]:
    """Import `file.py:function` and yield what the function does; whatever goes wrong in there is a DataError.

    `kinds` says in messages what else could have been given.
    """
    stem, _, function = (text if ".py:" in text else f"{text}:").rpartition(".py:")
    path = Path(f"{stem}.py")
    if not function.isidentifier():
        raise DataError(f"{text} names no function: write {path}:function, the function that yields the feeds.")
    if not path.is_file():
        raise DataError(f"{path} doesn't exist: give {kinds}.")
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
        made = getattr(module, function)()
        if isinstance(made, Mapping) or not isinstance(made, Iterable):
            raise DataError(f"{text} returned {type(made).__name__}: yield dicts of {{input name: array}} one by one.")
        yield from made
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{text}: {function}() of {path} failed with {reason}: mend the script.") from error
    finally:
        sys.modules.pop(name, None)
        if folder in sys.path:
            sys.path.remove(folder)

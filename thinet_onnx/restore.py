"""The JSON that `prune --json` wrote, back as a `Report`."""

import json
import math
import os
from typing import Any

from cattrs import Converter, transform_error

from thinet_onnx import files
from thinet_onnx.errors import ReportError
from thinet_onnx.result import Report

_LISTED = 3  # complaints in a message


def load_report(path: str | os.PathLike[str]) -> Report:
    """Read a report.

    Entries that this version doesn't know are left out; those that an older version didn't write stay empty.

    Raises:
        ReportError: the file can't be read, is no JSON, or isn't the report of a `prune` run.
    """
    try:
        plain = json.loads(files.read_text(path))
    except OSError as error:
        raise ReportError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is no JSON: give the file that prune --json wrote.") from error
    if not isinstance(plain, dict) or "plan" not in plain:
        inspected = isinstance(plain, dict) and "macs_removable" in plain
        what = "is of inspect, which measures nothing" if inspected else "is no report"
        raise ReportError(f"{path} {what}: give the file that prune --json wrote.")
    try:
        return _converter().structure(plain, Report)
    except Exception as error:
        complaints = transform_error(error, path="report")
        told = "; ".join(complaints[:_LISTED]) + (" …" if len(complaints) > _LISTED else "")
        raise ReportError(f"{path} is no report of prune ({told}): give the file that prune --json wrote.") from error


def _converter() -> Converter:
    """Strict about types, but for numbers that JSON couldn't hold: they are null in the file."""
    converter = Converter()
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(bool, _truth)
    return converter


def _number(value: Any, _: type) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number was expected")
    return float(value)


def _whole(value: Any, _: type) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number was expected")
    return value


def _text(value: Any, _: type) -> str:
    if not isinstance(value, str):
        raise ValueError("text was expected")
    return value


def _truth(value: Any, _: type) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false was expected")
    return value

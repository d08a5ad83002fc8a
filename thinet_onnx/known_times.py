"""Times of layers that were measured before, in the user's cache folder: a convenience that a run can do without."""

import hashlib
import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from thinet_onnx.machine import machine

_OF_PROCESS: dict[str, dict[str, float]] = {}


def folder() -> Path:
    """`thinet-onnx` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thinet-onnx"


class KnownTimes:
    """Milliseconds by the signature of what was measured; one file for an engine, a machine and a number of threads.

    A file that can't be read is taken for empty and written anew; where none can be written, times last as long as the
    process.
    """

    def __init__(self, engine: str, threads: int) -> None:
        here = machine()
        self._about = {"engine": engine, "processor": here.processor, "cores": here.cores, "threads": threads}
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()[:16]
        self.file = folder() / f"layer-times-{key}.json"
        if str(self.file) not in _OF_PROCESS:
            _OF_PROCESS[str(self.file)] = _read(self.file, self._about)
        self.times = _OF_PROCESS[str(self.file)]

    def save(self) -> None:
        """Keep the times for later runs, where that is possible."""
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.file.parent, prefix=".layer-times-", suffix=".tmp")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    json.dump(self._about | {"times_ms": self.times}, stream)
                Path(name).replace(self.file)
            finally:
                Path(name).unlink(missing_ok=True)


def _read(file: Path, about: dict[str, object]) -> dict[str, float]:
    """The times in a file; none if it isn't there, or isn't what `save` writes."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if {key: found[key] for key in about} != about:
            return {}
        times = {str(key): float(value) for key, value in found["times_ms"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return times if all(math.isfinite(value) and value >= 0 for value in times.values()) else {}

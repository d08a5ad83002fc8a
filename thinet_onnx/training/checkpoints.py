"""What is kept of a run on disk: a checkpoint that is written in full or not at all, and a log of lines.

The log holds no line from beyond the checkpoint that a run goes on from: those steps are taken again.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from thinet_onnx import files
from thinet_onnx.errors import OptionError, OutputError
from thinet_onnx.training.options import FinetuneOptions

State = dict[str, Any]


def fingerprint(models: list[onnx.ModelProto], data: str, options: FinetuneOptions) -> str:
    """What two runs have in common if one can go on where the other stopped; where they compute doesn't count."""
    digest = hashlib.sha256()
    for model in models:
        digest.update(model.SerializeToString(deterministic=True))
    chosen = {
        name: value for name, value in vars(options).items() if name not in ("device", "channels_last", "compile")
    }
    digest.update(repr((data, sorted(chosen.items()))).encode())
    return digest.hexdigest()


class Folder:
    """The files of one run.

    Args:
        path: the folder; made if it isn't there. None keeps nothing.
        mark: the run's fingerprint.
        writes: whether this process writes (the first of several does).

    Raises:
        OutputError: the folder can't be written.
    """

    def __init__(self, path: Path | None, mark: str, *, writes: bool) -> None:
        self._path, self._mark, self._writes = path, mark, writes and path is not None
        self._started = time.monotonic()
        if self._writes and path is not None:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{path} can't be made a folder for checkpoints ({error.strerror}).") from None

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's file."""
        return None if self._path is None else self._path / "checkpoint.pt"

    def load(self) -> State | None:
        """The state to go on from; None if there is none.

        Raises:
            OptionError: it is of another run, or can't be read.
        """
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        try:
            state: State = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # of any kind: an archive with pickled parts, all of it as damaged as can be
            reason = str(error).partition("\n")[0][:120]
            raise OptionError(f"{self.checkpoint} can't be read ({reason}); start again without --resume.") from None
        if not isinstance(state, dict) or state.get("mark") != self._mark:
            raise OptionError(
                f"{self.checkpoint} is of a run with other networks, data or options; use another folder, or start again "
                f"without --resume."
            )
        return state

    def save(self, state: State) -> None:
        """Write a checkpoint under a temporary name, and rename it.

        Raises:
            OutputError: it can't be written.
        """
        if not self._writes or self.checkpoint is None:
            return
        packed = io.BytesIO()  # torch.save turns a full disk into a RuntimeError that doesn't say so
        torch.save({**state, "mark": self._mark}, packed)
        with _writing(self.checkpoint):
            handle, name = tempfile.mkstemp(dir=self.checkpoint.parent, prefix=".checkpoint-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(packed.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self.checkpoint)
            finally:
                Path(name).unlink(missing_ok=True)

    def begin(self, step: int) -> None:
        """Start the log, or go on behind its lines up to `step`; a run from the start leaves no old checkpoint.

        Raises:
            OutputError: one of them can't be written.
        """
        if not self._writes or self._path is None or self.checkpoint is None:
            return
        log = self._path / "log.jsonl"
        with _writing(log):
            kept = [line for line in _lines(log) if step and _step_of(line) <= step]
            if not step:
                self.checkpoint.unlink(missing_ok=True)
            log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def log(self, step: int, **values: Any) -> None:
        """Add a line: what happened at a step, and the seconds since the run began.

        Raises:
            OutputError: it can't be written.
        """
        if self._writes and self._path is not None:
            line = {"step": step, **values, "seconds": round(time.monotonic() - self._started, 3)}
            log = self._path / "log.jsonl"
            with _writing(log), log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror or error}).") from None


def _lines(log: Path) -> list[str]:
    """The whole lines of a log; one that a killed run left unfinished is dropped."""
    if not log.exists():
        return []
    text = files.read_text(log)
    return text[: text.rfind("\n") + 1].splitlines()


def _step_of(line: str) -> int:
    """The step that a line of a log is about; one that isn't ours belongs to none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return sys.maxsize

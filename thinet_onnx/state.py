"""What a run keeps on disk as it goes, so that it can be killed at any moment and go on, and what it takes over.

A state folder holds `run.json` (whose run it is, and whether it is done), `moments.npz` (what was learnt of the original),
`decision.json` (the widths) and `step-0000.npz`, … (what came of each layer). Every file is written under a temporary name and
renamed, and only numbers and JSON are ever read back.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from thinet_onnx import archive, fingerprint, weigh
from thinet_onnx.consumers import Consumer
from thinet_onnx.decide import Decision
from thinet_onnx.errors import OutputError, StateError
from thinet_onnx.fingerprint import Feeds, Fingerprint
from thinet_onnx.options import PruneOptions, Storage
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.result import LatencyTarget, Tradeoff
from thinet_onnx.sweep import Step, Weights
from thinet_onnx.weigh import Weighed

_KIND = "thinet-onnx state"
_ADVICE = "name another folder with --state, or delete this one"


@dataclass(frozen=True)
class KnownDecision:
    """Widths that were settled in an earlier run, and what was told of them."""

    widths: list[int]
    remark: str | None
    tradeoff: tuple[Tradeoff, ...]
    timed: LatencyTarget | None

    def of(self, weighed: Weighed) -> Decision:
        """With what is known of the groups."""
        return Decision(
            self.widths, weighed.sensitivity, self.remark, weighed.errors, self.tradeoff, self.timed
        )  # fmt: skip


class Kept:
    """What one run keeps, and what it finds of an earlier one.

    Args:
        storage: where.
        moments: fingerprint of what was learnt of the original.
        run: fingerprint of the whole run.

    Raises:
        OutputError: the state folder can't be made or written.
        StateError: it is of another run, or damaged.
    """

    def __init__(self, storage: Storage, moments: Fingerprint, run: Fingerprint) -> None:
        self._storage, self._moments = storage, moments
        self.journal = None if storage.state is None else Folder(storage.state, run)

    @classmethod
    def open(
        cls, storage: Storage, model: onnx.ModelProto, data: Sequence[Iterable[Feeds]], options: PruneOptions,
        versions: Mapping[str, str], ranks: Ranks = ALONE,
    ) -> "Kept | None":  # fmt: skip
        """For a model, data (batches that are fitted on, and others) and options; see `Kept`.

        Of several processes each tells of its own batches, and the first one keeps and reads; None for the others.
        """
        every_share = ranks.gather([[fingerprint.of_batch(feeds) for feeds in batches] for batches in data])
        if not ranks.first:
            return None
        digests = [[digest for share in every_share for digest in share[place]] for place in range(len(data))]
        found = fingerprint.of_model(model), fingerprint.of_data(digests)
        chosen = {"method": options.selection, "reconstruct": options.reconstruction}
        shared = {
            name: getattr(options, name) for name in ("scope", "include", "exclude", "positions", "seed")
        } | chosen
        if options.refits:  # joint or full: the groups are weighed alike
            shared["reconstruct"] = "full"
        own = {"thinet-onnx": versions["thinet-onnx"]}
        libraries = {name: version for name, version in versions.items() if name != "python"}
        every = dataclasses.asdict(options) | chosen
        del every["memory"]  # changes nothing of the result
        return cls(storage, Fingerprint(*found, shared, own), Fingerprint(*found, every, libraries))

    def weighed(self, consumers: Sequence[Consumer], *, weights: bool) -> Weighed | None:
        """What an earlier run learnt of the original; None if there is nothing, or it has no weights, but they are needed.

        Raises:
            StateError: it can't be read, or is of another run.
        """
        if self._storage.from_moments is not None:
            return weigh.read(self._storage.from_moments, consumers, self._moments)
        if self.journal is not None and self.journal.moments.is_file():
            found = weigh.read(self.journal.moments, consumers, self._moments)
            return found if found.curves or not weights else None
        return None

    def add_weighed(self, weighed: Weighed) -> None:
        """Keep what was learnt, wherever it is to be kept.

        Raises:
            OutputError: it can't be written.
        """
        if self._storage.save_moments is not None:
            weigh.write(self._storage.save_moments, weighed, self._moments)
        if self.journal is not None and not self.journal.moments.is_file():
            weigh.write(self.journal.moments, weighed, self._moments)

    def decision(self) -> KnownDecision | None:
        """The widths that an earlier run settled on."""
        return None if self.journal is None else self.journal.decision()

    def add_decision(self, decision: Decision) -> None:
        """Keep the widths."""
        if self.journal is not None:
            self.journal.add_decision(decision)

    def done(self) -> None:
        """Say in the state that the result is written."""
        if self.journal is not None:
            self.journal.done()


class Folder:
    """The state folder; takes down the steps of a sweep.

    Args:
        path: the folder; made if it isn't there.
        run: the run's fingerprint.

    Raises:
        OutputError: it can't be made or written.
        StateError: it is of another run, or damaged.
    """

    def __init__(self, path: Path, run: Fingerprint) -> None:
        self._path, self._run = path, run
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--state {path} can't be made a folder ({error.strerror}); name another.") from error
        for left in path.glob(".*.tmp"):  # by a run that was killed while it wrote
            left.unlink(missing_ok=True)
        self._file = path / "run.json"
        if self._file.is_file():
            plain = self._plain(self._file)
            if plain.get("kind") != _KIND:
                raise StateError(f"{self._file} is no state of a run; {_ADVICE}.")
            run.check(plain.get("fingerprint"), path, _ADVICE)
        else:
            self._write(done=False)
        self._mark = ""

    @property
    def moments(self) -> Path:
        """Where what was learnt of the original is kept."""
        return self._path / "moments.npz"

    def decision(self) -> KnownDecision | None:
        """The widths that were settled on; None if they weren't."""
        if not self._widths.is_file():
            return None
        plain = self._plain(self._widths)
        try:
            if plain["mark"] != self._digest([]):
                raise StateError(f"{self._widths} is of another run; {_ADVICE}.")
            timed = plain["timed"]
            return KnownDecision(
                plain["widths"], plain["remark"], tuple(Tradeoff(**point) for point in plain["tradeoff"]),
                None if timed is None else LatencyTarget(**timed),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise _damaged(self._widths, error) from error

    def add_decision(self, decision: Decision) -> None:
        """Keep the widths, and what is told of them."""
        timed = None if decision.timed is None else dataclasses.asdict(decision.timed)
        plain = {
            "mark": self._digest([]), "widths": decision.widths, "remark": decision.remark, "timed": timed,
            "tradeoff": [dataclasses.asdict(point) for point in decision.tradeoff],
        }  # fmt: skip
        archive.write_json(self._widths, plain)

    def steps(self, widths: Sequence[int], stops: int) -> list[Step]:
        """The steps that were taken down for these widths, as far as they follow one another.

        Raises:
            StateError: one can't be read, or is of another run.
        """
        self._mark = self._digest(widths)
        known: list[Step] = []
        while len(known) < stops and (path := self._step(len(known))).is_file():
            known.append(self._read(path))
        return known

    def add(self, stop: int, step: Step) -> None:
        """Take a step down.

        Raises:
            OutputError: it can't be written.
        """
        arrays = {f"pick/{group}": units for group, units in step.picks.items()}
        for place, weights in enumerate(step.weights):
            arrays[f"matrix/{place}"] = weights.matrix
            if weights.bias is not None:
                arrays[f"bias/{place}"] = weights.bias
        about = {
            "mark": self._mark, "picks": list(step.picks), "errors": [weights.error for weights in step.weights]
        }  # fmt: skip
        archive.write(self._step(stop), arrays, about)

    def done(self) -> None:
        """Say that the result is written."""
        self._write(done=True)

    @property
    def _widths(self) -> Path:
        return self._path / "decision.json"

    def _step(self, stop: int) -> Path:
        return self._path / f"step-{stop:04d}.npz"

    def _read(self, path: Path) -> Step:
        arrays, about = archive.read(path, "a step of a run")
        try:
            if about["mark"] != self._mark:
                raise StateError(f"{path} is of another run; {_ADVICE}.")
            picks = {group: arrays[f"pick/{group}"] for group in about["picks"]}
            weights = [
                Weights(arrays[f"matrix/{place}"], arrays.get(f"bias/{place}"), error)
                for place, error in enumerate(about["errors"])
            ]
        except (KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        return Step(picks, tuple(weights))

    def _digest(self, widths: Sequence[int]) -> str:
        """What the files of one run have in common."""
        return hashlib.sha256(json.dumps([self._run.plain(), list(widths)]).encode()).hexdigest()

    def _plain(self, path: Path) -> dict[str, Any]:
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path, error) from error
        if not isinstance(plain, dict):
            raise StateError(f"{path} is no state of a run; {_ADVICE}.")
        return plain

    def _write(self, *, done: bool) -> None:
        archive.write_json(self._file, {"kind": _KIND, "done": done, "fingerprint": self._run.plain()})


def _damaged(path: Path, error: BaseException) -> StateError:
    return StateError(f"{path} is damaged ({archive.first_line(error)}); {_ADVICE}.")

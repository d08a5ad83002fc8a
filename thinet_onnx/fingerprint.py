"""What two runs must have in common if one is to use what the other kept: the model, the data, options, versions.

Model and data are known by what is in them (SHA-256), wherever they lie and whatever they are called.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thinet_onnx import external
from thinet_onnx.errors import StateError

Feeds = Mapping[str, np.ndarray[Any, Any]]

_SPELLED = {"shapes": "--shape", "widths": "widths"}


def of_model(model: onnx.ModelProto) -> str:
    """The digest of a model with the data that it has outside; where that lies doesn't count."""
    bare = model
    if any(map(external.is_external, model.graph.initializer)):
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        for tensor in bare.graph.initializer:
            del tensor.external_data[:]
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    for name, value in external.arrays(model):
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def of_batch(feeds: Feeds) -> str:
    """The digest of one batch, as the network gets it."""
    digest = hashlib.sha256()
    for name, value in feeds.items():
        digest.update(json.dumps([name, str(value.dtype), value.shape]).encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def of_data(parts: Sequence[Sequence[str]]) -> str:
    """The digest of data, from those of the batches of each part: the same numbers, divided alike."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """Digests of model and data, the options that matter by their names, and versions by package."""

    model: str
    data: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result

    def check(self, found: Any, path: Path, advice: str) -> None:
        """Refuse what is of another run.

        Args:
            found: a fingerprint as `plain` made it, read from a file.
            path: of the file or folder, for the message.
            advice: what to do instead.

        Raises:
            StateError: with what differs.
        """
        differences = self._differences(found if isinstance(found, dict) else {})
        if differences:
            raise StateError(f"{path} is of another run ({_listed(differences)}); {advice}.")

    def _differences(self, found: Mapping[str, Any]) -> list[str]:
        mine = self.plain()
        options, versions = (_unequal(mine[part], found.get(part)) for part in ("options", "versions"))
        words = ["another model"] if found.get("model") != mine["model"] else []
        if found.get("data") != mine["data"] and not {"seed", "samples"} & set(options):  # which divide the data
            words.append("other data, or other preprocessing of it")
        words += [f"another {_SPELLED.get(name, '--' + name.replace('_', '-'))}" for name in options]
        return words + [f"another version of {name}" for name in versions]


def _bytes(value: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _unequal(mine: Mapping[str, Any], theirs: Any) -> list[str]:
    theirs = theirs if isinstance(theirs, dict) else {}
    return [name for name in dict.fromkeys([*mine, *theirs]) if name not in theirs or mine.get(name) != theirs[name]]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

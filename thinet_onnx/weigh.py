"""What a run learns of the original before it settles any width: error curves, sensitivities, and what picking needs later.

That depends on no target, so one pass over the data serves many: it can be kept in a file and read again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinet_onnx import archive, budget
from thinet_onnx.choose import Chooser, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.errors import StateError
from thinet_onnx.fingerprint import Fingerprint
from thinet_onnx.labels import Ids
from thinet_onnx.moments import Statistics
from thinet_onnx.trial import Tried

Array = np.ndarray[Any, Any]
Doubles = NDArray[np.float64]

_UNSEEN = ("random", "weight-sum")  # methods that rank channels without looking at the data
_KIND = "thinet-onnx moments"


@dataclass(frozen=True)
class Weighed:
    """What is known of the groups, by their numbers.

    `errors`: squared relative errors of a candidate's readers when 0, 1, … of its units are gone. `curves`: the same in units
    of the network's output. `sensitivity`: how far the output moves for one unit of a group's error. All three are empty where
    nothing was weighed. `orders`: in which the units of a group go, where the original settles that. `views` are the original's
    statistics at layers that are read after the first reader of a group has been reached: to pick the group's channels, they
    stand for what the pruned network will show there. `ridges` are those that
    served the original best.
    """

    errors: dict[int, Doubles]
    curves: dict[int, Doubles]
    sensitivity: dict[int, float]
    views: dict[Consumer, View]
    ridges: dict[Consumer, float] = field(default_factory=dict)
    orders: dict[int, Ids] = field(default_factory=dict)

    def bare(self) -> "Weighed":
        """Without what only picking needs, which the first of several processes does."""
        return replace(self, views={}, ridges={})

    def curves_of(self, sizes: Sequence[int]) -> list[budget.Curve]:
        """A curve for each group; no error where a group wasn't weighed."""
        return [budget.Curve(self.curves.get(group, np.zeros(size + 1))) for group, size in enumerate(sizes)]


def later_readers(chooser: Chooser, groups: Sequence[int]) -> list[Consumer]:
    """Layers whose statistics of the original are needed while channels are picked: all readers of a group but its first."""
    if chooser.options.selection in _UNSEEN:
        return []
    return list(dict.fromkeys(consumer for group in groups for consumer in chooser.readers[group][1:]))


def weigh(tried: Mapping[int, Tried], views: Mapping[Consumer, View], ridges: Mapping[Consumer, float]) -> Weighed:
    """Error curves in units of the output, from groups that were pruned alone.

    Args:
        tried: the groups.
        views: what picking will need.
        ridges: see `Weighed`.
    """
    curves: dict[int, Doubles] = {}
    sensitivity: dict[int, float] = {}
    for group, entry in tried.items():
        rates = entry.rates
        scaled = entry.errors * np.interp(np.arange(len(entry.errors)), list(rates), list(rates.values()))
        curves[group] = np.maximum.accumulate(scaled)
        sensitivity[group] = entry.sensitivity
    errors = {group: entry.errors for group, entry in tried.items()}
    orders = {group: entry.order for group, entry in tried.items()}
    return Weighed(errors, curves, sensitivity, dict(views), dict(ridges), orders)


def write(path: Path, weighed: Weighed, fingerprint: Fingerprint) -> None:
    """Keep what was weighed in a file.

    Raises:
        OutputError: it can't be written.
    """
    arrays: dict[str, Array] = {}
    for group, error in weighed.errors.items():
        arrays |= {f"error/{group}": error, f"curve/{group}": weighed.curves[group]}
    arrays |= {f"order/{group}": order for group, order in weighed.orders.items()}
    views = []
    for number, (consumer, view) in enumerate(weighed.views.items()):
        views.append({"weight": consumer.layer.weight, "parts": len(view.parts)})
        arrays |= {f"view/{number}/{name}": value for name, value in _arrays(view).items()}
    sensitivity = {str(group): value for group, value in weighed.sensitivity.items()}
    ridges = {consumer.layer.weight: ridge for consumer, ridge in weighed.ridges.items()}
    about = {
        "kind": _KIND, "fingerprint": fingerprint.plain(), "sensitivity": sensitivity, "views": views, "ridges": ridges,
        "orders": list(weighed.orders),
    }  # fmt: skip
    archive.write(path, arrays, about)


def read(path: Path, consumers: Sequence[Consumer], fingerprint: Fingerprint) -> Weighed:
    """What an earlier run kept.

    Raises:
        StateError: the file can't be read, or is of another run.
    """
    arrays, about = archive.read(path, "the moments that prune --save-moments wrote")
    if about.get("kind") != _KIND:
        raise StateError(f"{path} is another kind of file; give one that prune --save-moments wrote.")
    fingerprint.check(about.get("fingerprint"), path, "save moments for this one, with --save-moments")
    by_weight = {consumer.layer.weight: consumer for consumer in consumers}
    try:
        sensitivity = {int(group): float(value) for group, value in about["sensitivity"].items()}
        errors, curves = ({group: arrays[f"{name}/{group}"] for group in sensitivity} for name in ("error", "curve"))
        views = {}
        for number, entry in enumerate(about["views"]):
            consumer = by_weight[entry["weight"]]
            views[consumer] = _view(consumer, arrays, f"view/{number}", entry["parts"])
        orders = {int(group): arrays[f"order/{int(group)}"] for group in about["orders"]}
        ridges = {by_weight[name]: float(ridge) for name, ridge in about["ridges"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{path} is damaged ({archive.first_line(error)} is missing or odd); save it again."
        ) from error
    return Weighed(errors, curves, sensitivity, views, ridges, orders)


def _arrays(view: View) -> dict[str, Array]:
    """A view's numbers by name, without the division by batches."""
    arrays = {"units": view.units, "zeros": view.zeros}
    if view.sampled is not None:
        arrays |= {"rows": view.sampled[0], "answers": view.sampled[1]}
    for place, part in enumerate(view.parts):
        arrays |= {f"{place}/{entry.name}": np.asarray(getattr(part, entry.name)) for entry in fields(part)}
    return arrays


def _view(consumer: Consumer, arrays: Mapping[str, Array], prefix: str, parts: int) -> View:
    sampled = None
    if f"{prefix}/rows" in arrays:
        sampled = arrays[f"{prefix}/rows"], arrays[f"{prefix}/answers"]
    found = []
    for place in range(parts):
        values = {entry.name: arrays[f"{prefix}/{place}/{entry.name}"] for entry in fields(Statistics)}
        plain: dict[str, Any] = {name: value if value.ndim else value.item() for name, value in values.items()}
        found.append(Statistics(**plain))
    return View(consumer, found, [], [], sampled, arrays[f"{prefix}/units"], arrays[f"{prefix}/zeros"])

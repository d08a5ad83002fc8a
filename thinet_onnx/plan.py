"""What is to be cut, as plain data: frozen types and their JSON form.

A `PrunePlan` says everything that surgery does and nothing about why. It round-trips through JSON, so that a plan can
be kept, compared, and applied again, and so that the mask oracle can be checked with no code of this package:
zero `removed` along `axis` of every consumer's `weight` in the original file, and the outputs equal the pruned file's.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class GroupCut:
    """One channel group: `before` channels, of which the indices in `kept` (ascending) stay."""

    name: str
    producers: tuple[str, ...]
    before: int
    kept: tuple[int, ...]

    @property
    def after(self) -> int:
        """Channels that stay."""
        return len(self.kept)


@dataclass(frozen=True)
class ConsumerCut:
    """A weight tensor that loses input channels: indices `removed` along `axis` of the tensor `weight`."""

    node: str
    weight: str
    axis: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class TensorCut:
    """A slice: indices `removed` along `axis` of the constant tensor `tensor` (initializer or Constant node's output)."""

    tensor: str
    axis: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class IntEdit:
    """New integers for one operand or attribute of a node that names a size, an offset or a position.

    `node` is the name of the node's first output (nodes may be nameless). Exactly one of `operand` (input index) and
    `attribute` is set. `values[i]` replaces element i; where it is `None` the element stays as it is in the graph.
    """

    node: str
    operand: int | None
    attribute: str | None
    values: tuple[int | None, ...]


@dataclass(frozen=True)
class ErasedLayer:
    """A layer of which no input channel is left: its output is its bias, along `axis` of a tensor of `rank` dimensions.

    `node` is the name of the node's first output.
    """

    node: str
    axis: int
    rank: int


@dataclass(frozen=True)
class PrunePlan:
    """All that a pruned file differs in, apart from refitted weights."""

    groups: tuple[GroupCut, ...]
    consumers: tuple[ConsumerCut, ...]
    cuts: tuple[TensorCut, ...]
    edits: tuple[IntEdit, ...]
    erased: tuple[ErasedLayer, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts; groups also carry `after`, for readers."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for entry, group in zip(plain["groups"], self.groups, strict=True):
            entry["after"] = group.after
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(
            groups=tuple(
                GroupCut(g["name"], tuple(g["producers"]), g["before"], tuple(g["kept"])) for g in plain["groups"]
            ),
            consumers=tuple(
                ConsumerCut(c["node"], c["weight"], c["axis"], tuple(c["removed"])) for c in plain["consumers"]
            ),
            cuts=tuple(TensorCut(c["tensor"], c["axis"], tuple(c["removed"])) for c in plain["cuts"]),
            edits=tuple(IntEdit(e["node"], e["operand"], e["attribute"], tuple(e["values"])) for e in plain["edits"]),
            erased=tuple(ErasedLayer(e["node"], e["axis"], e["rank"]) for e in plain.get("erased", ())),
        )

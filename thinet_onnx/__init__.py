"""Channel pruning for convolutional ONNX files: ThiNet on the graph, with calibration data and no training code.

    import thinet_onnx
    result = thinet_onnx.prune("model.onnx", "calibration.npz", target="macs=50%")
    onnx.save(result.model, "smaller.onnx")

`prune` and `inspect` take a path or an `onnx.ModelProto`. The command line is `thinet-onnx`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thinet_onnx._version import __version__
from thinet_onnx.errors import (
    DataError,
    ModelError,
    NothingToPruneError,
    OptionError,
    OutputError,
    TargetError,
    ThinetError,
)
from thinet_onnx.options import Method, Reconstruction, Scope

if TYPE_CHECKING:
    import onnx

    from thinet_onnx.pipeline import Data, PruneResult
    from thinet_onnx.result import Inspection

# From 1.29 on ONNX Runtime's official builds report names and hashes of models to their maker, and leave a file in the folder
# for temporary ones, unless this is set before they are loaded. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "DataError",
    "ModelError",
    "NothingToPruneError",
    "OptionError",
    "OutputError",
    "TargetError",
    "ThinetError",
    "__version__",
    "inspect",
    "prune",
]


def prune(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    data: "Data",
    *,
    target: str | None = None,
    keep: float | None = None,
    method: Method | None = None,
    reconstruct: Reconstruction | None = None,
    scope: Scope = "inner",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    random_data: bool = False,
    test_data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    **pixels: Any,
) -> "PruneResult":
    """Prune a model: the command `thinet-onnx prune` as a function.

    Args:
        model: a path, or a ModelProto (left as it is).
        data: calibration data: a folder of images, .npy, .npz or `script.py:function` as a path; arrays by input name; one
            array for a model with one input; an iterable of feeds.
        target: what is to remain, `macs=50%`, `params=50%` or absolute (`macs=2.0G`); half of the MACs by default.
        keep: in place of `target`, the share of channels to keep in every group.
        method: how channels are ranked; by default by what a refit leaves without them.
        reconstruct: how the weights that read the cut channels are rebuilt; by default the method's own way.
        scope: `inner` leaves residual streams alone, `all` prunes them too.
        include: regular expressions; only groups of matching nodes are pruned.
        exclude: regular expressions; groups of matching nodes are left whole.
        round_to: multiple that widths are rounded to; by default by the width of the group.
        samples: how many of the data to take, at random.
        seed: of all that is random.
        shapes: sizes of inputs that the file leaves open.
        random_data: calibrate on noise, with `data` None; the report warns.
        test_data: labelled data, for accuracy before and after.
        output: where to write the result.
        pixels: `mean`, `std`, `scale`, `layout`, `resize` for uint8 images (see `data.Preprocess`).

    Returns:
        the pruned model, the plan and the report.

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from thinet_onnx import pipeline
    from thinet_onnx.data import Preprocess
    from thinet_onnx.options import PruneOptions, Target

    if target is None and keep is None:
        target = "macs=50%"
    options = PruneOptions(
        target=None if target is None else Target.parse(target), keep=keep, method=method, reconstruct=reconstruct,
        scope=scope, include=tuple(include), exclude=tuple(exclude), round_to=round_to, samples=samples, seed=seed,
        shapes=dict(shapes or {}),
    )  # fmt: skip
    return pipeline.prune(
        model, data, options, preprocess=Preprocess(**pixels), random_data=random_data, test_data=test_data, output=output
    )  # fmt: skip


def inspect(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    scope: Scope = "all",
) -> "Inspection":
    """What of a model can be pruned, and why the rest can't: the command `thinet-onnx inspect` as a function.

    Args:
        model: a path, or a ModelProto.
        shapes: sizes of inputs that the file leaves open.
        scope: `inner` counts residual streams as staying.

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from thinet_onnx import pipeline

    return pipeline.inspect(model, shapes=dict(shapes or {}), scope=scope)

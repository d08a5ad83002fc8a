"""A run's options as TOML, in the spelling of the command line: what a pruned file carries, to be made again.

What the network is fed with stands at the top, for every command; the rest in the table of `prune`. A value that was left
to the tool (None) is left out, since it will find the same one again.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tomli_w

from thinet_onnx._version import __version__
from thinet_onnx.options import PruneOptions, Target

if TYPE_CHECKING:
    from thinet_onnx.images import Preprocess

KEY = "thinet_onnx.config"
"""The entry of a pruned file's metadata that holds it."""


FED = ("data", "shape", "mean", "std", "scale", "resize", "layout")
"""What a network is fed with: these options may stand at the top for every command, whether it takes data or not."""


def of_prune(options: PruneOptions, pixels: "Preprocess", data: object, asked: Mapping[str, Any]) -> str:
    """The configuration of a run of `prune`.

    Args:
        options: of the run; `widths` have no spelling on a command line and may not be set.
        pixels: how images become numbers.
        data: the calibration data; a path stands in the configuration as it is, anything else as a remark.
        asked: other options of the command by their long names; what is None, False, 0 or empty is left out.

    Returns:
        TOML text: the same for the same request, whatever the machine and the time.
    """
    assert options.widths is None
    path = os.fspath(data) if isinstance(data, str | os.PathLike) else None
    fed = {
        "data": path,
        "shape": [f"{name}:{','.join(map(str, sizes))}" for name, sizes in options.shapes.items()] or None,
        "mean": list(pixels.mean) or None,
        "std": list(pixels.std) or None,
        "scale": pixels.scale,
        "resize": None if pixels.resize is None else "x".join(map(str, pixels.resize)),
        "layout": pixels.layout,
    }
    cut = {
        "samples": options.samples,
        "seed": options.seed,
        "target": None if options.target is None else spelled(options.target),
        "keep": options.keep,
        "preset": options.preset,
        "scope": options.scope,
        "include": list(options.include) or None,
        "exclude": list(options.exclude) or None,
        "round-to": options.round_to,
        "positions": options.positions,
        "drop-branches": options.drop_branches,
        "method": options.selection,
        "reconstruct": options.reconstruction,
    }
    if options.for_latency:
        cut |= {"engine": options.engine, "latency-batch": options.latency_batch, "threads": options.threads}
    cut |= {name: value for name, value in asked.items() if value}
    head = f"# thinet-onnx {__version__}; options that are not here were left to it\n"
    if path is None and data is not None:
        head += "# the calibration data came from a Python program; name yours with --data\n"
    return head + tomli_w.dumps(_without_none(fed) | {"prune": _without_none(cut)})


def spelled(target: Target) -> str:
    """A target as an option's text, exact: `Target.parse` of it is the same target."""
    if not target.relative:
        return f"{target.kind}={target.value!r}" + ("ms" if target.kind == "latency" else "")
    percent = f"{target.kind}={100 * target.value:.12g}%"
    return percent if Target.parse(percent) == target else f"{target.kind}={target.value!r}"


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

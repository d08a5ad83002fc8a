"""Options of training that `finetune` and `prune --finetune` read alike."""

import dataclasses
from typing import Any

from thinet_onnx.cli.shared import floats
from thinet_onnx.errors import OptionError
from thinet_onnx.training.options import FinetuneOptions

_REPEATED = ("feature", "output_weight")


def output_weights(texts: list[str]) -> dict[str, float]:
    """Parse `NAME=W`; raises OptionError."""
    weights = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        values = floats("--output-weight", number) if name else ()
        if len(values) != 1 or values[0] < 0:
            raise OptionError(
                f"--output-weight {text!r} is not understood: write an output and its weight, such as boxes=0.5."
            )
        weights[name] = values[0]
    return weights


def tune_options(texts: list[str], **others: Any) -> FinetuneOptions:
    """Parse `OPTION=VALUE`, options as `finetune` has them; raises OptionError."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(FinetuneOptions)}
    kinds |= {"learning_rate": float, "steps": int, "validate_every": int, "loss": str, "trainable_from": str}
    simple = {name: kind for name, kind in kinds.items() if kind in (int, float, str, bool) and name != "epochs"}
    found: dict[str, Any] = {}
    repeated: dict[str, list[str]] = {name: [] for name in _REPEATED}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        kind = simple.get(name)
        try:
            if not equals or (kind is None and name not in repeated):
                raise ValueError
            if kind is None:
                repeated[name].append(value)
            else:
                found[name] = {"on": True, "off": False}[value] if kind is bool else kind(value)
        except (ValueError, KeyError):
            names = ", ".join(entry.replace("_", "-") for entry in sorted((*simple, *repeated)))
            raise OptionError(
                f"--finetune {text!r} is not understood: write OPTION=VALUE (on or off for a switch); options are {names}."
            ) from None
    weights, features = output_weights(repeated["output_weight"]), tuple(repeated["feature"])
    return FinetuneOptions(**(others | found), output_weights=weights, features=features)

"""Ingredients that no option switches, switched alone: for `accuracy.py --ablate`, not for use."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from thinet_onnx import choose, consumers, sweep, trial, verify


def _no_stream_loss(_: Any, found: list[consumers.Consumer]) -> None:
    """Targets are the original's answers alone, whatever the residual stream lost before."""
    for consumer in found:
        consumer.other.extend("" for _ in consumer.uses)


def _divergence(before: Any, after: Any) -> float:
    """The mean Kullback–Leibler divergence of the first output's softmax."""
    a, b = (np.concatenate([batch[0] for batch in batches]).astype(np.float64) for batches in (before, after))
    logs = [x - x.max(1, keepdims=True) for x in (a, b)]
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in logs)
    return float((np.exp(p) * (p - q)).sum(1).mean())


SWITCHES: dict[str, tuple[Any, str, Any]] = {
    "no-stream-loss": (consumers, "_settle_sums", _no_stream_loss),
    "divergence-as-sensitivity": (verify, "distance", _divergence),
    "no-sensitivity": (trial.Tried, "rates", property(lambda tried: dict.fromkeys(tried.moved, 1.0))),
    "only-cut-layers": (sweep, "READ_ON", ()),
    "uncut-layers-too": (sweep, "READ_ON", ("joint", "full")),
    "fixed-ridge": (choose, "RIDGES", (choose.RIDGE,)),
    "no-honest-curves": (choose.Chooser, "_honesty", lambda *_: 1.0),
}
"""For each ingredient what is put in its place: (object, attribute, replacement)."""


@contextmanager
def switched_off(name: str) -> Iterator[None]:
    """Run with one ingredient switched, or several (`no-honest-curves+fixed-ridge`); an empty name changes nothing."""
    with ExitStack() as stack:
        for part in filter(None, name.split("+")):
            stack.enter_context(mock.patch.object(*SWITCHES[part]))
        yield

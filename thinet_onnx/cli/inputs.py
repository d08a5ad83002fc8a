"""Options that `bench` and `verify` share: what files are fed, and where they run."""

from typing import Annotated

from thinet_onnx.check_options import Precision as PrecisionName
from thinet_onnx.cli.shared import option

INPUTS, RUNS = "Inputs", "How they are run"

Shapes = Annotated[
    list[str] | None, option(INPUTS, "NAME:N,C,H,W", "Sizes of an input, where left open; repeatable.", "--shape")
]
Seed = Annotated[int, option(INPUTS, "N", "Seed of all that is random.")]
Threads = Annotated[int | None, option(RUNS, "N", "Threads of a CPU engine.", default="the engine's own choice")]
Precision = Annotated[
    PrecisionName, option(RUNS, "NAME", "fp32 (the types of the file), fp16, bf16 or int8, in engines that convert.")
]


def batches(default: str) -> object:
    """Declare `--batch`; `default` is what its help shows."""
    return option(RUNS, "N[,N..]", "Batch sizes; repeatable.", "--batch", default=default)

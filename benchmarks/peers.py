"""Other tools' one-shot channel pruning behind one face: a problem in, an ONNX file out.

    onnxsim      `onnxsim.apply_structured_pruning` (L2), `apply_structured_wanda_pruning`; both with the same share of every
                 layer or one ranking over all (`-global`), Wanda also with its closed-form refit of fully connected layers
                 (`+ridge`) and its block-wise fine-tuning against the original (`+finetune`)
    tp           Torch-Pruning's group importances, local or global, in one step or several (`-iterative`), each also with
                 BatchNorm statistics measured anew on the calibration images (`+bn`); see `peers_torch.py`

A peer is given a ratio of channels, not MACs; the ratio that leaves the MACs asked for is found by bisection. Nobody but
the criterion named sees labels: Taylor and Hessian importance take those of the calibration images, if there are any.
"""

import fnmatch
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from itertools import product
from pathlib import Path
from typing import Any, Literal, Protocol

import onnx

from thinet_onnx import runtime, verify
from thinet_onnx.data import Source

LANDED = 0.01  # a peer has met the target within this share of the original's MACs
_CLOSE_ENOUGH, _STEPS, _MOST = 0.002, 12, 0.97
_SAME = 1e-3  # relative; what preparing a file may change in its answers
_FINETUNE = {"num_iterations": 300, "learning_rate": 1e-3, "batch_size": 32}


class UnavailableError(Exception):
    """A peer can't be run on this model or in this environment; the text says why."""


@dataclass(frozen=True)
class Problem:
    """What everyone gets.

    `share` of the MACs is to remain, counted by `remains`; `calibration` are the images to use (its labels may be None).
    `memory` is shared by all problems on the same model and images.
    """

    path: Path
    calibration: Source
    share: float
    scope: Literal["inner", "all"]
    remains: Callable[[onnx.ModelProto], float]
    shapes: Mapping[str, tuple[int, ...]]
    memory: dict[Any, Any]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all who ask for `key` on this model and these images."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


@dataclass(frozen=True)
class Outcome:
    """A pruned file, the seconds it took (the last run alone, without the search for the ratio), and what to know of it."""

    model: onnx.ModelProto
    seconds: float
    note: str = ""


class Peer(Protocol):
    """`scoped` says whether it can be told to leave residual streams alone; `package` is what it takes."""

    @property
    def name(self) -> str: ...
    @property
    def scoped(self) -> bool: ...
    @property
    def package(self) -> str: ...
    def prune(self, problem: Problem) -> Outcome: ...


def search(remains: Callable[[float], float], share: float) -> float:
    """The ratio of removed channels whose result has the share of MACs nearest to `share`, by bisection."""
    low, high = 0.0, _MOST
    best, nearest = high, abs(remains(high) - share)
    for _ in range(_STEPS):
        if nearest <= _CLOSE_ENOUGH:
            break
        ratio = (low + high) / 2
        left = remains(ratio)
        if abs(left - share) < nearest:
            best, nearest = ratio, abs(left - share)
        low, high = (ratio, high) if left > share else (low, ratio)
    return best


@dataclass(frozen=True)
class Onnxsim:
    """One of onnxsim's structured pruners; it settles by itself which layers it understands."""

    criterion: Literal["l2", "wanda"]
    pooled: bool
    repair: Literal["", "ridge", "finetune"] = ""

    scoped = False
    package = "onnxsim"

    @property
    def name(self) -> str:
        """For example onnxsim-wanda-global+finetune."""
        parts = ["onnxsim", self.criterion, *(["global"] if self.pooled else [])]
        return "-".join(parts) + (f"+{self.repair}" if self.repair else "")

    def prune(self, problem: Problem) -> Outcome:
        """Fold, search the ratio, prune, repair."""
        model = problem.once("prepared", lambda: prepared(problem))
        feeds = problem.once("feeds", lambda: list(batches(problem)))

        def run() -> tuple[onnx.ModelProto, float, float]:
            # With the same share of every layer the widths don't depend on the images, so that one batch finds the ratio.
            few = feeds if self.pooled else feeds[:1]
            ratio = search(lambda r: problem.remains(self._cut(model, few, r)), problem.share)
            started = time.perf_counter()
            return self._cut(model, feeds, ratio), ratio, time.perf_counter() - started

        pruned, ratio, seconds = problem.once(("onnxsim", self.criterion, self.pooled, problem.share), run)
        started = time.perf_counter()
        note = f"ratio {ratio:.3f}"
        if self.repair:
            pruned, told = _ridge(model, pruned, feeds) if self.repair == "ridge" else _finetune(model, pruned, feeds)
            note = f"{note}; {told}"
        return Outcome(pruned, seconds + time.perf_counter() - started, note)

    def _cut(self, model: onnx.ModelProto, feeds: list[dict[str, Any]], ratio: float) -> onnx.ModelProto:
        import onnxsim  # noqa: PLC0415  an optional peer

        if self.criterion == "l2":
            return onnxsim.apply_structured_pruning(model, sparsity=ratio, global_sparsity=self.pooled)
        return onnxsim.apply_structured_wanda_pruning(
            model, calibration_data=feeds, sparsity=ratio, global_sparsity=self.pooled
        )


def prepared(problem: Problem) -> onnx.ModelProto:
    """The file as onnxsim wants it, with BatchNorm folded into the convolutions: by `onnxsim.simplify` and, where that leaves
    some, after ONNX Runtime's basic optimisation.

    Raises UnavailableError if that changes the network's answers.
    """
    import onnxsim  # noqa: PLC0415

    original = onnx.load(str(problem.path))
    sizes = {name: list(shape) for name, shape in problem.shapes.items()}
    simple, _ = onnxsim.simplify(original, overwrite_input_shapes=sizes or None)
    if any(node.op_type == "BatchNormalization" for node in simple.graph.node):
        simple, _ = onnxsim.simplify(_optimised(original), overwrite_input_shapes=sizes or None)
    feeds = [problem.calibration.batch([row]) for row in range(min(8, len(problem.calibration)))]
    gap = verify.disagreement(original, simple, runtime.outputs(original, feeds), feeds)
    if not gap <= _SAME:
        raise UnavailableError(f"onnxsim.simplify changes the answers by {gap:.1e}")
    return simple


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime's basic, portable optimisation makes of a model."""
    import tempfile  # noqa: PLC0415

    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def batches(problem: Problem) -> Iterator[dict[str, Any]]:
    """All calibration images, in batches if the file takes any number, else as it takes them."""
    graph = onnx.load(str(problem.path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    dims = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in constants]
    open_batch = not problem.shapes and all(len(dim) and not dim[0].dim_value for dim in dims)
    size = 32 if open_batch and problem.calibration.stackable else 1
    count = len(problem.calibration)
    return (problem.calibration.batch(range(start, min(start + size, count))) for start in range(0, count, size))


def _ridge(model: onnx.ModelProto, pruned: onnx.ModelProto, feeds: list[dict[str, Any]]) -> tuple[Any, str]:
    import onnxsim  # noqa: PLC0415

    return onnxsim.apply_pruning_finetune(model, pruned, calibration_data=feeds), "fully connected layers refitted"


def _finetune(model: onnx.ModelProto, pruned: onnx.ModelProto, feeds: list[dict[str, Any]]) -> tuple[Any, str]:
    import onnxsim  # noqa: PLC0415

    with _shapes_of_student(pruned):
        tuned, blocks = onnxsim.apply_block_finetune_all_blocks(model, pruned, calibration_data=feeds, **_FINETUNE)
    trained = sum(block.trained for block in blocks)
    each = f"{_FINETUNE['num_iterations']} steps of {_FINETUNE['batch_size']}"
    told = f"{each} on each of {trained} of {len(blocks)} blocks (which it refuses unmended, see peers.py)"
    return tuned, told


@contextmanager
def _shapes_of_student(pruned: onnx.ModelProto) -> Iterator[None]:
    """onnxsim 0.8 infers a block's shapes with the original's weights, so that it refuses every block whose channels were
    cut; here it takes the pruned ones.
    """
    from onnxsim import qat  # noqa: PLC0415

    original = qat._block_shapes
    qat._block_shapes = lambda _teacher, *rest: original(pruned, *rest)
    try:
        yield
    finally:
        qat._block_shapes = original


@dataclass(frozen=True)
class TorchPruning:
    """One of Torch-Pruning's importances in its `BasePruner` (once `MetaPruner`)."""

    importance: Literal["l1", "l2", "fpgm", "taylor", "hessian"]
    pooled: bool
    iterative: bool
    renormalise: bool

    scoped = True
    package = "torch-pruning"

    @property
    def name(self) -> str:
        """For example tp-fpgm-global-iterative+bn."""
        parts = [
            "tp",
            self.importance,
            "global" if self.pooled else "local",
            *(["iterative"] if self.iterative else []),
        ]
        return "-".join(parts) + ("+bn" if self.renormalise else "")

    def prune(self, problem: Problem) -> Outcome:
        """Search the ratio, prune, measure BatchNorm statistics, export."""
        import peers_torch  # noqa: PLC0415  needs torch

        return peers_torch.prune(
            problem, self.importance, pooled=self.pooled, iterative=self.iterative, renormalise=self.renormalise
        )


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *(Onnxsim(criterion, pooled) for criterion, pooled in product(("l2", "wanda"), (False, True))),
        *(Onnxsim("wanda", pooled, repair) for pooled, repair in product((False, True), ("ridge", "finetune"))),
        *(
            TorchPruning(importance, pooled, iterative, renormalise)
            for importance, pooled, iterative, renormalise in product(
                ("l1", "l2", "fpgm", "taylor", "hessian"), (False, True), (False, True), (False, True)
            )
        ),
    )
}


def find(patterns: Sequence[str]) -> list[Peer]:
    """The peers whose names match one of the patterns (`tp-*-global`), in a fixed order.

    Raises ValueError for a pattern that matches none, UnavailableError for a package that isn't installed.
    """
    for pattern in patterns:
        if not fnmatch.filter(PEERS, pattern):
            raise ValueError(f"no peer is called {pattern!r}; there are {', '.join(PEERS)}")
    found = [peer for name, peer in PEERS.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    for package in sorted({peer.package for peer in found}):
        if util.find_spec(package.replace("-", "_")) is None:
            raise UnavailableError(f"{package} is not installed here: install it, or name other --peers")
    return found


def versions() -> dict[str, str]:
    """Versions of what is installed of the peers and what they need."""
    names = ("onnxsim", "torch-pruning", "torch")
    return {name: metadata.version(name) for name in names if util.find_spec(name.replace("-", "_")) is not None}

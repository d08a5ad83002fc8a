"""Widths for a time: allocate by the times of single layers, cut, measure the whole file, correct, again.

What single layers take doesn't add up to what a network takes: engines fuse, caches are warm, other operators shrink along.
So every choice of widths is cut and measured beside the original, and the next limit is chosen from what was found.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from thinet_onnx import budget, runtime, surgery
from thinet_onnx.cost import Cost
from thinet_onnx.data import Source
from thinet_onnx.errors import OptionError, TargetError
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis, loss, make_plan
from thinet_onnx.labels import Ids
from thinet_onnx.options import Progress, PruneOptions, Target
from thinet_onnx.profile import Profile
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.result import LatencyTarget
from thinet_onnx.setting import Setting
from thinet_onnx.stopwatch import Compared, EngineStopwatch, Feeds, Stopwatch
from thinet_onnx.subject import Subject, WrongBatchError

NEAR = 0.02  # a target is met when the measured share is no further from it
_ABOVE = 0.005  # so little above the target no more is tried
_TRIES = 6
_SECONDS = 4.0  # for each of them


@dataclass
class Bench:
    """Where files are measured: the original as it is, the model that is cut, and feeds of the batch that counts.

    Of several processes the first one measures, while the others wait, and tells them: so all come to the same widths.
    """

    original: onnx.ModelProto
    model: onnx.ModelProto
    feeds: Feeds
    batch: int
    stopwatch: Stopwatch
    ranks: Ranks = ALONE
    reconstruction: str = "none"

    @classmethod
    def open(
        cls, setting: Setting, source: Source, options: PruneOptions, stopwatch: Stopwatch | None, ranks: Ranks = ALONE
    ) -> "Bench":
        """Start the engine and prepare the feeds.

        Args:
            setting: the original.
            source: what it is fed.
            options: `engine`, `threads`, `latency_batch`.
            stopwatch: measures in place of the engine.
            ranks: the processes of the run.

        Raises:
            OptionError: the engine isn't installed, or the file or the data can't have this batch.
        """
        stopwatch = stopwatch or EngineStopwatch(options.engine, options.threads)
        subject = Subject(setting.name, setting, options.shapes, source)
        batch = options.latency_batch or subject.own_batch
        try:
            (feeds,) = subject.feeds(batch, options.seed, most=1)
        except WrongBatchError as error:
            raise OptionError(f"--latency-batch {batch} doesn't fit {setting.name}: {error}.") from error
        original = setting.read if setting.read.opset_import else setting.model
        return cls(original, setting.model, feeds, batch, stopwatch, ranks, options.reconstruction)

    @cached_property
    def original_ms(self) -> float:
        """What the original takes."""
        return self.ranks.once(lambda: self.stopwatch.one(self.original, self.feeds, _SECONDS))

    def share(self, target: Target) -> float:
        """A target as a share of the original's time.

        Raises:
            TargetError: the original takes no longer.
        """
        share = target.value if target.relative else target.value / self.original_ms
        if share >= 1:
            raise TargetError(
                f"--target {target}: the original takes {self.original_ms:.3g} ms on {self.stopwatch.title} at batch "
                f"{self.batch}, no longer than that; ask for less."
            )
        return share

    def profile(self, analysis: Analysis, candidates: Collection[int], progress: Progress) -> Cost:
        """Milliseconds by the groups' widths, as single layers tell."""
        whole, shapes = self.original_ms, runtime.observed_shapes(Graph(self.model), self.feeds)
        profile = Profile(analysis, self.model, shapes, self.stopwatch)
        return self.ranks.once(lambda: profile.cost(whole, candidates, progress))

    def compare(self, analysis: Analysis, widths: Sequence[int]) -> Compared:
        """Cut a file to these widths, whatever the channels, and measure it beside the original."""
        kept = [np.arange(width) for width in widths]
        bare = surgery.apply(self.model, make_plan(analysis, kept))
        settle_biases(bare, analysis, kept, self.reconstruction)
        return self.ranks.once(lambda: self.stopwatch.both(self.original, bare, self.feeds, _SECONDS))


def settle_biases(model: onnx.ModelProto, analysis: Analysis, kept: list[Ids], reconstruction: str) -> None:
    """Give layers that will be refitted a constant bias where a cut model computes it at run time, in place.

    The refit will, and engines fuse such layers with what follows; what the numbers are makes no difference to time.
    """
    cut = {g for g, group in enumerate(analysis.groups) if len(kept[g]) < group.size}
    made = (
        {layer.node.key for g in cut for layer in analysis.groups[g].producers} if reconstruction == "joint" else set()
    )
    nodes = {node.output[0]: node for node in model.graph.node if node.output}
    lost = loss(analysis, kept)
    for layer in analysis.context.linears if reconstruction in ("joint", "full") else ():
        reads = layer.in_labels is not None and not layer.depthwise and not cut.isdisjoint(analysis.units(layer)[0])
        weight, node = analysis.graph.fold(layer.weight), nodes.get(layer.node.key)
        name = "" if layer.bias is None else layer.node.operand(layer.bias)
        if not (reads or layer.node.key in made) or node is None or weight is None:
            continue
        if layer.bias is not None and name and layer.out_labels is not None and analysis.graph.fold(name) is None:
            size = layer.out_channels - int(lost(layer.out_labels).sum())
            zeros = onnx.numpy_helper.from_array(np.zeros(size, weight.dtype), f"thinet_bias_{layer.node.index}")
            model.graph.initializer.append(zeros)
            node.input[layer.bias] = zeros.name


@dataclass(frozen=True)
class Try:
    """Widths, the share of the original's time that was expected of them, and what was measured."""

    widths: list[int]
    predicted: float
    found: Compared


@dataclass(frozen=True)
class Landing:
    """The widths that come nearest to a target; `remark` says why it was missed, None if it was met."""

    widths: list[int]
    timed: LatencyTarget
    remark: str | None


@dataclass
class Search:
    """Widths of a wanted time.

    `choices` are the widths allowed for each group, `curves` their errors, `cost` the time by single layers.
    """

    bench: Bench
    analysis: Analysis
    choices: Sequence[Sequence[int]]
    curves: Sequence[budget.Curve]
    cost: Cost
    tried: list[Try] = field(default_factory=list)

    def land(self, target: Target, progress: Progress) -> Landing:
        """Cut and measure until the measured share is near the target, at most a few times; the best one is taken.

        Raises:
            TargetError: the fastest widths take longer.
        """
        wanted, limit = self.bench.share(target), self.bench.share(target)
        progress.start("Cutting and timing", _TRIES)
        for _ in range(_TRIES):
            widths = self._widths(limit)
            over = self._measure(widths).found.ratio - wanted
            progress.note(f"cut and timed: {over + wanted:.3f} of the original, {wanted:.3f} wanted")
            progress.advance()
            following = self._next(wanted)
            if -NEAR <= over <= _ABOVE or following is None:
                break
            limit = following
        best = min(self.tried, key=lambda entry: _distance(entry.found.ratio - wanted))
        least = min(entry.found.ratio for entry in self.tried)
        where = f"measured on {self.bench.stopwatch.title} at batch {self.bench.batch}"
        if least > wanted + NEAR:
            raise TargetError(
                f"--target {target} can't be reached: with every group at its fastest {least:.1%} of the original's time "
                f"remain, {where}; ask for more, or allow more groups (--scope all, a smaller --round-to, fewer --exclude)."
            )
        remark, found = None, best.found
        if abs(found.ratio - wanted) > NEAR:
            remark = f"of the widths tried none comes nearer to {target} than {found.ratio:.1%} of the original's time"
        timed = LatencyTarget(
            wanted, found.ratio, best.predicted, found.first_ms, found.second_ms, self.bench.stopwatch.title,
            self.bench.batch, self.bench.stopwatch.threads, len(self.tried),
        )  # fmt: skip
        return Landing(best.widths, timed, remark)

    @cached_property
    def _fastest(self) -> list[int]:
        """The widths that are expected to take least time, of those that going group by group leads to."""
        starts = self.analysis.sizes, [options[0] for options in self.choices]
        return min(map(self._faster, starts), key=self.cost.total)

    def _faster(self, start: Sequence[int]) -> list[int]:
        """Give each group in turn its fastest width, the widest of several, until nothing gets faster."""
        kept, best = list(start), np.inf
        while self.cost.total(kept) < best:
            best = self.cost.total(kept)
            for group, options in enumerate(self.choices):
                kept[group] = max((self.cost.saving(kept, group, width), width) for width in options)[1]
        return kept

    def _share(self, widths: list[int]) -> float:
        return self.cost.total(widths) / self.cost.total(self.analysis.sizes)

    def _widths(self, limit: float) -> list[int]:
        """Widths with the least error that are expected to take no more than this share, or the fastest there are.

        Raises:
            TargetError: no group's removal buys any time.
        """
        sizes = self.analysis.sizes
        if self._fastest == sizes:
            raise TargetError(
                f"No group that may be pruned takes any time on {self.bench.stopwatch.title}; allow more of them "
                "(--scope all, fewer --exclude), or choose another target."
            )
        if limit <= self._share(self._fastest):
            return self._fastest
        reached = budget.reach(sizes, self.choices, self.curves, self.cost, limit * self.cost.total(sizes))
        return self._fastest if reached is None else reached

    def _known(self, widths: list[int]) -> bool:
        return any(entry.widths == widths for entry in self.tried)

    def _measure(self, widths: list[int]) -> Try:
        found = self.bench.compare(self.analysis, widths)
        self.tried.append(Try(widths, self._share(widths), found))
        return self.tried[-1]

    def _next(self, wanted: float) -> float | None:
        """The limit to try next: on the line through what was measured on both sides; None if nothing new is left."""
        least = self._share(self._fastest)
        points = [(1.0, 1.0), *((entry.predicted, entry.found.ratio) for entry in self.tried)]
        above = min((point for point in points if point[1] > wanted), key=lambda point: point[1])
        below = max((point for point in points if point[1] <= wanted), key=lambda point: point[1], default=None)
        if below is None:
            if self._known(self._fastest):
                return None
            (predicted, ratio), many = above, len(self.tried) > 2
            steep = (1 - predicted) / (1 - ratio) if ratio < 1 else np.inf
            limits = [least if many else max(least, predicted - (ratio - wanted) * steep), least]
        else:
            part = (wanted - below[1]) / (above[1] - below[1])
            limits = [below[0] + share * (above[0] - below[0]) for share in (part, 0.5, 0.75, 0.25)]
        return next((limit for limit in limits if not self._known(self._widths(limit))), None)


def _distance(over: float) -> float:
    """How bad it is to be so far from a target: above it twice as bad as below."""
    return 2 * over if over > 0 else -over

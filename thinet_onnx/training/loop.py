"""The loop: steps, validations, checkpoints.

Everything that a step depends on is in the state that a checkpoint holds, or follows from the seed and the number of the
step; so a run that was killed goes on as if nothing had happened.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from thinet_onnx.data import Source
from thinet_onnx.errors import OptionError
from thinet_onnx.options import Progress
from thinet_onnx.torch_twin import Twin
from thinet_onnx.training.checkpoints import Folder, State
from thinet_onnx.training.feeding import Feeding
from thinet_onnx.training.losses import Objective
from thinet_onnx.training.networks import Feeds, Network, Teacher
from thinet_onnx.training.optimizers import optimizer
from thinet_onnx.training.options import FinetuneOptions, Validation
from thinet_onnx.training.processes import Processes
from thinet_onnx.training.whitening import Coordinates

Kept = dict[str, Tensor]


class Loop:
    """A student that learns from a teacher.

    Args:
        student: the network that is trained.
        teacher: the one it is compared with.
        objective: what is minimised.
        feeding: the items of each step.
        data: where all items come from.
        held: rows of the items that are held out.
        options: the run's.
        processes: those that take part.
        coordinates: where some of the weights are trained.
        together: whether several items may be run at once.
    """

    def __init__(
        self, student: Network, teacher: Teacher, objective: Objective, feeding: Feeding, data: Source,
        held: Sequence[int], options: FinetuneOptions, processes: Processes, coordinates: Mapping[str, Coordinates], *,
        together: bool,
    ) -> None:  # fmt: skip
        self._student, self._teacher, self._objective, self._feeding = student, teacher, objective, feeding
        self._data, self._held, self._options, self._processes = data, list(held), options, processes
        self._together = together
        self._twin = student.twin
        self._twin.learn_statistics = options.batch_norm == "learned"
        self._twin.share_statistics(processes.total if processes.count > 1 else None)
        self._weights = self._twin.weights()
        self._optimizer = optimizer(self._weights, options, coordinates)
        self.total = options.steps or options.epochs * feeding.steps
        self.step = 0
        self._averaged: Kept = {name: w.detach().clone() for name, w in self._weights.items()} if options.ema else {}
        self.validations: list[Validation] = []
        self.losses: list[float] = []
        self._best: Kept = {}

    def run(self, folder: Folder, progress: Progress, state: State | None) -> None:
        """Train to the end, or until validations show nothing new; the twin then holds the best weights."""
        if state is not None:
            self._restore(state)
        folder.begin(self.step)
        progress.start("Fine-tuning", self.total)
        progress.advance(self.step)
        if not self.validations:
            self._validate(folder)
        every = self._options.validate_every or self._feeding.steps
        while self.step < self.total and not self._stale():
            parts = self._advance()
            self.losses.append(sum(parts.values()))
            progress.advance()
            folder.log(self.step, epoch=(self.step - 1) // self._feeding.steps, rate=self._rate(self.step - 1),
                       loss=self.losses[-1], parts=parts)  # fmt: skip
            if self.step % every == 0 or self.step == self.total:
                self._validate(folder)
                folder.save(self._state())
            elif self._options.checkpoint_every and self.step % self._options.checkpoint_every == 0:
                folder.save(self._state())
        self._put(self._best)
        self._twin.eval()

    @property
    def twin(self) -> Twin:
        """The module that is trained."""
        return self._twin

    @property
    def best(self) -> Validation:
        """The validation with the least loss, the earliest of several."""
        return min(self.validations, key=lambda entry: entry.loss)

    def _stale(self) -> bool:
        since = len(self.validations) - 1 - self.validations.index(self.best)
        return bool(self._options.patience) and since >= self._options.patience

    def _rate(self, step: int) -> float:
        """The learning rate of a step: up in a line, down by a cosine."""
        warm = round(self._options.warmup * self.total)
        if step < warm:
            return self._options.rate * (step + 1) / warm
        return self._options.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(self.total - warm, 1)))

    def _advance(self) -> dict[str, float]:
        """One step of the optimizer; returns the parts of the loss over all processes."""
        self._twin.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        self._optimizer.zero_grad()
        rows = self._feeding.rows(self.step)
        epoch = self.step // self._feeding.steps
        parts = self._zeros()
        for some in self._pieces(self._processes.share(rows)):
            found = self._parts(self._feeding.feeds(some, epoch), some)
            share = len(some) / len(rows)
            torch.stack(list(found.values())).sum().mul(share).backward()  # type: ignore[no-untyped-call]
            for name, value in found.items():
                parts[name] += share * value.detach()
        self._finish(parts)
        self.step += 1
        return {name: float(value) for name, value in parts.items()}

    def _finish(self, parts: dict[str, Tensor]) -> None:
        """Sum gradients over all processes, and move the weights."""
        for weight in self._weights.values():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self._processes.add_up([w.grad for w in self._weights.values() if w.grad is not None])
        self._processes.add_up(parts.values())
        limit = self._options.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self._weights.values()), limit)
        if not torch.isfinite(norm):
            raise OptionError(
                f"Training diverged at step {self.step + 1} (the gradient is not finite): lower --learning-rate."
            )
        self._optimizer.step()
        with torch.no_grad():
            for name, average in self._averaged.items():
                average.lerp_(self._weights[name], 1 - self._options.ema)

    def _pieces(self, rows: list[int]) -> list[list[int]]:
        """Items that are run at once: all, or one by one where the network or the data allows no more."""
        return [rows] if self._together and rows else [[row] for row in rows]

    def _parts(self, feeds: Feeds, rows: list[int]) -> dict[str, Tensor]:
        """The parts of the loss of some items."""
        return self._objective.parts(self._student(feeds), self._teacher(feeds), self._batch(feeds, rows))

    def _batch(self, feeds: Feeds, rows: list[int]) -> dict[str, Any]:
        batch = {name: self._student.placed(value) for name, value in feeds.items()}
        if self._data.labels is not None:
            batch["labels"] = self._student.placed(self._data.labels[rows])
        return batch

    def _validate(self, folder: Folder) -> None:
        """Take the loss on the held-out items with the weights that would be kept, and keep them if they are the best."""
        self._twin.eval()
        sums, agreed = self._zeros(), torch.zeros(2, device=self._processes.device)
        with self._using(self._averaged):
            with torch.no_grad():
                for first in range(0, len(self._held), self._options.batch):
                    rows = self._held[first : first + self._options.batch]
                    for some in self._pieces(self._processes.share(rows)):
                        feeds = self._data.batch(some)
                        student, teacher = self._student(feeds), self._teacher(feeds)
                        agreed += torch.tensor(self._objective.agreeing(student, teacher), device=agreed.device)
                        if self._options.mix:  # the loss is of what is trained, always the same mixtures
                            feeds = self._feeding.feeds(some, 0)
                            student, teacher = self._student(feeds), self._teacher(feeds)
                        for name, value in self._objective.parts(student, teacher, self._batch(feeds, some)).items():
                            sums[name] += len(some) / len(self._held) * value
            self._processes.add_up([*sums.values(), agreed])
            parts = {name: float(value) for name, value in sums.items()}
            agreement = int(agreed[0]) / int(agreed[1]) if agreed[1] else None
            self.validations.append(Validation(self.step, sum(parts.values()), parts, agreement))
            if self.best is self.validations[-1]:
                self._best = self._current()
        folder.log(self.step, validation=asdict(self.validations[-1]))

    def _zeros(self) -> dict[str, Tensor]:
        """A sum for each part of the loss."""
        return {name: torch.zeros((), device=self._processes.device) for name in self._objective.names}

    @contextmanager
    def _using(self, values: Kept) -> Iterator[None]:
        """With other weights in the twin."""
        before = {name: self._weights[name].detach().clone() for name in values}
        self._put(values)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, values: Kept) -> None:
        stored = self._weights | self._twin.statistics()
        with torch.no_grad():
            for name, value in values.items():
                stored[name].copy_(value)

    def _current(self) -> Kept:
        """The weights and statistics in the twin."""
        return {name: value.detach().clone() for name, value in (self._weights | self._twin.statistics()).items()}

    def _state(self) -> State:
        return {
            "step": self.step, "twin": self._current(), "optimizer": self._optimizer.state_dict(),
            "averaged": self._averaged, "best": self._best, "validations": [asdict(v) for v in self.validations],
            "losses": self.losses,
        }  # fmt: skip

    def _restore(self, state: State) -> None:
        self.step = state["step"]
        self._put(state["twin"])
        self._optimizer.load_state_dict(state["optimizer"])
        device = self._processes.device
        self._averaged = {name: value.to(device) for name, value in state["averaged"].items()}
        self._best = state["best"]
        self.losses = state["losses"]
        self.validations = [Validation(**entry) for entry in state["validations"]]

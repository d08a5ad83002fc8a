"""Progress bars on a terminal, and lines that stay."""

import time

from rich import progress as bars
from rich.console import Console

from thinet_onnx import wording
from thinet_onnx.options import Progress

_REMEMBERED = 3600.0  # seconds of a stage that tell how fast it is: a step may take minutes


class Bars(Progress):
    """A bar for each stage: how far, how many, how long still, how long it took. All are cleared away at the end."""

    def __init__(self, console: Console) -> None:
        self._display = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            speed_estimate_period=_REMEMBERED,
        )
        self._tasks: dict[str, bars.TaskID] = {}
        self._now: bars.TaskID | None = None

    def start(self, stage: str, total: int) -> None:
        """Draw a bar for the stage; one that comes again gets its old bar."""
        self._finish()
        self._display.start()
        if stage in self._tasks:
            self._display.reset(self._tasks[stage], total=total)
        else:
            self._tasks[stage] = self._display.add_task(stage, total=total)
        self._now = self._tasks[stage]

    def advance(self, steps: int = 1) -> None:
        """Move the bar of the stage."""
        if self._now is not None:
            self._display.advance(self._now, steps)

    def note(self, text: str) -> None:
        """Leave it out; `Lines` prints it."""

    def close(self) -> None:
        """Clear the bars away."""
        self._finish()
        self._display.stop()

    def _finish(self) -> None:
        """Fill the bar of the stage that ends, and stop its clock."""
        if self._now is not None:
            total = self._display.tasks[self._now].total
            self._display.update(self._now, completed=total)
            self._now = None


class Lines(Progress):
    """A line for each stage with its seconds, and one for each note, beside what another progress draws."""

    def __init__(self, console: Console, beside: Progress) -> None:
        self._console, self._beside = console, beside
        self._stage, self._total, self._since = "", 0, 0.0

    def start(self, stage: str, total: int) -> None:
        """Say how long the stage before took."""
        self._finish()
        self._stage, self._total, self._since = stage, total, time.perf_counter()
        self._beside.start(stage, total)

    def advance(self, steps: int = 1) -> None:
        """Pass it on."""
        self._beside.advance(steps)

    def note(self, text: str) -> None:
        """Print it."""
        self._print(f"  {text}")

    def close(self) -> None:
        """Say how long the last stage took."""
        self._finish()
        self._beside.close()

    def _finish(self) -> None:
        if self._stage:
            took = wording.seconds(time.perf_counter() - self._since)
            self._print(f"{self._stage}: {wording.plural(self._total, 'step')}, {took}")
            self._stage = ""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

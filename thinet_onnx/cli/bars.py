"""Progress bars on a terminal."""

from rich import progress as bars
from rich.console import Console

from thinet_onnx.options import Progress


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

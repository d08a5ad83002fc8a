"""The same examples in every run, and word at the end of what was not tested for want of files."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices; threads that spin slow the runtime down

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))  # "default" draws others

ZOO_ABSENT = "no folder of real models beside the repository (../shared/zoo)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if ZOO_ABSENT in str(report.longrepr)]
    if skipped:
        terminalreporter.section("not tested", sep="!", yellow=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} tests on real models were skipped: {ZOO_ABSENT}.", yellow=True)

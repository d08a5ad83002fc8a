"""The same examples in every run, and word at the end of what was not tested for want of files."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices; threads that spin slow the runtime down
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads, for the same reason

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))  # "default" draws others

ZOO_ABSENT = "no folder of real models beside the repository (../shared/zoo)"
NO_BROWSER = "no Chromium or Chrome, or no Playwright to drive it"
NO_MKDOCS = "no MkDocs (pip install '.[docs]')"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    told = {
        f"{count} tests {what} were skipped: {why}."
        for what, why in (
            ("on real models", ZOO_ABSENT),
            ("of the page in a browser", NO_BROWSER),
            ("of the site", NO_MKDOCS),
        )
        if (count := sum(why in reason for reason in skipped))
    }
    if told:
        terminalreporter.section("not tested", sep="!", yellow=True, bold=True)
        for line in sorted(told):
            terminalreporter.write_line(line, yellow=True)

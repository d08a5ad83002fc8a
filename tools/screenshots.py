"""Pictures of report pages, to look at: every width in both colour schemes, and the page as it is printed.

    python tools/screenshots.py report.html [more.html ...] [--folder pictures]

Needs Chromium or Chrome on the machine, and Playwright (`pip install '.[dev]'`), which drives it.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
PATIENCE = 180_000  # milliseconds, for busy machines


def browser() -> str | None:
    """Where a browser is, if there is one."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window; raises RuntimeError where none is installed."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    place = browser()
    if place is None:
        raise RuntimeError(f"no browser is installed; looked for {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        # A sandbox needs rights that root in a container lacks.
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        active = playwright.chromium.launch(executable_path=place, args=flags)
        try:
            yield active
        finally:
            active.close()


@contextmanager
def opened(active: Any, page: Path, width: int, scheme: str = "light", height: int = 900) -> Iterator[Any]:
    """A page at a width in a colour scheme, without network; `page.complaints` is what it said on the console."""
    context = active.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, has_touch=width < 700
    )
    context.set_default_timeout(PATIENCE)
    shown = context.new_page()
    complaints: list[str] = []
    shown.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    shown.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    shown.on("requestfailed", lambda request: complaints.append(f"request: {request.url}"))
    shown.goto(page.resolve().as_uri())
    shown.complaints = complaints
    try:
        yield shown
    finally:
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--folder", type=Path, default=Path("screenshots"))
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with launched() as active:
        for page in chosen.pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    target = chosen.folder / f"{page.stem}-{width}-{scheme}.png"
                    with opened(active, page, width, scheme) as shown:
                        shown.screenshot(path=target, full_page=True)
                        print(target, *shown.complaints, sep="\n  ")
            with opened(active, page, WIDTHS[-1]) as shown:
                shown.pdf(path=chosen.folder / f"{page.stem}.pdf", format="A4", prefer_css_page_size=True)
                print(chosen.folder / f"{page.stem}.pdf")


if __name__ == "__main__":
    main()

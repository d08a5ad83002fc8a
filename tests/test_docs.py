"""The documentation is true: its links lead somewhere, its marked code runs, the help's examples run, the site builds."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_MKDOCS

from thinet_onnx import cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "models" / "README.md"]
RUN = re.compile(r"^<!-- run( torch)? -->\n```(sh|python)\n(.*?)^```", re.M | re.S)
FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
NO_TORCH = "PyTorch is not installed: the documentation's examples of training are NOT TESTED"

with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason=NO_TORCH)


def anchors(page: Path) -> set[str]:
    """Of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", text)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(link)
    assert lost == []


def test_a_link_to_nowhere_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` (c), d\n```\n# no heading\n```\n## The run's end\n", encoding="utf-8")
    assert anchors(page) == {"a-b-c-d", "the-runs-end"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled models and the examples, where `thinet-onnx` and `python` are those of the tests."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("models", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    for name, options in (("python", ""), ("thinet-onnx", " -m thinet_onnx")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{options} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return folder


def run(folder: Path, kind: str, code: str) -> None:
    """Run some code; what it printed is in the message if it fails."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euc", code] if kind == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


MARKED = [(page, RUN.findall(page.read_text(encoding="utf-8"))) for page in PAGES]


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        pytest.param(
            page, blocks, id=str(page.relative_to(ROOT)), marks=[with_torch] if any(torch for torch, *_ in blocks) else []
        )
        for page, blocks in MARKED
        if blocks
    ],
)  # fmt: skip
def test_marked_code_of_a_page_runs(page: Path, blocks: list[tuple[str, str, str]], place: Path) -> None:
    assert page.read_text(encoding="utf-8").count("<!-- run") == len(blocks)
    for _, kind, code in blocks:
        run(place, kind, code)


@with_torch
def test_the_examples_in_the_help_run_one_after_the_other(place: Path) -> None:
    epilogs = {entry.callback.__name__: entry.epilog for entry in cli.app.registered_commands}
    for command in ("inspect", "prune", "finetune", "verify", "bench", "report"):
        line = epilogs[command].removeprefix("Example: ").partition("   (")[0]
        assert line.startswith(f"thinet-onnx {command} ")
        run(place, "sh", line)
    assert {path.name for path in place.glob("small*")} >= {
        "small.onnx",
        "small.json",
        "small.html",
        "small_finetuned.onnx",
    }


@with_torch
def test_the_example_of_a_loss_runs(place: Path) -> None:
    run(
        place, "sh",
        "thinet-onnx finetune models/fashion_vgg.onnx out.onnx --teacher models/fashion_vgg.onnx --steps 2 --samples 64 "
        "--data models/fashion_calibration.npz --mean 0.286 --std 0.353 --loss examples/loss.py:margin --loss-weight 0.5",
    )  # fmt: skip


def test_the_example_in_python_runs(place: Path) -> None:
    run(place, "sh", "python examples/prune.py python.onnx && test -s python.onnx && test -s python.html")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason=NO_MKDOCS)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "drop_branches" in api and "NothingToPruneError" in api
    assert "add-an-operator" in (tmp_path / "site" / "contributing" / "index.html").read_text(encoding="utf-8")

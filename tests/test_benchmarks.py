"""The benchmarks run, small, on what the repository brings, and say what they promise to say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import Net

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"


def run(script: str, *arguments: Any, code: int = 0) -> str:
    """A benchmark's output; its exit code must be `code`."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    utf8 = os.environ | {"PYTHONUTF8": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=utf8, timeout=300, check=False
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network with open sizes, one with nothing to prune, one that is no ONNX file."""
    net = Net()
    alone = net.model(net.conv(net.input("x", (1, 3, 8, 8)), 3, 4))
    onnx.save(alone, tmp_path / "alone.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, "H", "W")), 3, 16))
    onnx.save(net.model(net.head(net.relu(net.conv(x, 16, 16)), 16)), tmp_path / "open.onnx")
    return tmp_path


def test_prunability_gives_a_verdict_on_every_file(folder: Path) -> None:
    out = folder / "rows.json"
    told = run("prunability.py", folder, "--samples", 8, "--json", out)
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"alone": "nothing prunable", "broken": "refused", "open": "ok"}
    assert "3 files: 1 nothing prunable, 1 refused, 1 ok" in told
    assert "is not an ONNX file" in rows["broken"]["reason"]
    row = rows["open"]
    assert (row["removable"], row["channels"]) == (32, 37)
    assert row["oracle"] <= row["tolerance"] == 1e-4
    assert row["oracle_refitted"] <= 1e-4
    assert row["left"] == pytest.approx(0.5, abs=0.05)
    assert row["error_refitted"] < row["error_bare"]
    assert row["runs"] == ["1×3×64×64: ok", "3×3×64×64: ok", "1×3×96×96: ok"]


def test_prunability_without_pruning_runs_the_file_of_a_random_plan(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("prunability.py", MODELS, "--no-prune", "--only", "fashion_resnet", "--json", out)
    (row,) = json.loads(out.read_text(encoding="utf-8"))
    assert row["verdict"] == "ok"
    assert (row["removable"], row["channels"]) == (840, 850)
    assert row["macs_removable"] / row["macs"] == pytest.approx(0.999, abs=1e-3)
    assert row["plans"] == 4 + 1  # two scopes × two shares, and the first plan at another batch
    assert 0 < row["analysis_more"] < row["analysis_total"]
    assert row["left"] is None
    assert row["runs"] == ["1×1×28×28: ok", "3×1×28×28: ok"]


def test_prunability_kills_what_takes_too_long(folder: Path) -> None:
    told = run("prunability.py", folder, "--only", "open", "--limit", "0.01", code=1)
    assert "1 files: 1 hang" in told


def test_prunability_tells_of_results_that_are_wrong(folder: Path) -> None:
    broken = folder / "run.py"
    broken.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]\n"
        "import prunability\n"
        "from thinet_onnx import verify\n"
        "verify.oracle = lambda *_: 0.5\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(prunability.main(sys.argv[1:]))\n",
        encoding="utf-8",
    )
    arguments = [sys.executable, str(broken), str(folder), "--only", "open", "--no-prune"]
    ended = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "FAIL open: oracle differs by 5.0e-01, more than 1.0e-04" in ended.stdout


@pytest.mark.skipif(importlib.util.find_spec("onnxsim") is not None, reason="onnxsim is installed")
def test_a_peer_that_is_absent_is_named(folder: Path) -> None:
    told = run("prunability.py", folder, "--peer", "onnxsim", code=2)
    assert told == "onnxsim isn't installed in this Python; install it with pip install onnxsim.\n"


def test_analysis_prints_the_slope_of_every_part(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("analysis.py", "--only", "wide", "--shrink", 16, "--repeat", 1, "--json", out)
    rows = json.loads(out.read_text(encoding="utf-8"))
    sizes = [row["size"] for row in rows if row["case"] == "wide" and "size" in row]
    assert sizes == [128, 256, 512]
    for row in rows:
        if "size" in row:
            assert all(
                row[part]["seconds"] > 0 for part in ("observe", "analyse", "collect", "inspect", "plan", "apply")
            )
            assert row["counts"]["removable"] > 0.9 * row["counts"]["channels"]
    assert rows[-1]["slope"]["analyse"] < 1  # of so few channels: most of it is the same for all


def test_slopes_are_exponents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import analysis  # noqa: PLC0415  a script, not a module of the package

    sizes = np.array([500, 1000, 2000])
    assert analysis.slope(sizes, 3e-4 * sizes**1.5) == pytest.approx(1.5)


def test_analysis_fails_where_time_grows_too_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import analysis  # noqa: PLC0415

    def measured(_: Any, path: str, *__: Any, **___: Any) -> dict[str, Any]:
        size = int(Path(path).stem.split("_")[1])
        parts = {part: {"seconds": 1e-3 * size, "more": 2e6} for part in analysis.PARTS}
        parts["plan"]["seconds"] = 1e-5 * size**2
        parts["apply"]["seconds"] = 1e-9 * size**2  # as steep, but too short to matter
        return parts | {"counts": {"nodes": 9, "channels": size}}

    monkeypatch.setattr(analysis, "in_child", measured)
    assert analysis.main(["--only", "wide", "--shrink", "16"]) == 1
    assert "wide: plan grows with the power 2.00 of channels" in capsys.readouterr().out

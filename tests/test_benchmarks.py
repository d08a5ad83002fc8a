"""The benchmarks run, small, on what the repository brings, and say what they promise to say."""

import dataclasses
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


def run(script: str, *arguments: Any, code: int | None = 0) -> str:
    """A benchmark's output; its exit code must be `code`, or 0 or 1 where it is None."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    utf8 = os.environ | {"PYTHONUTF8": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=utf8, timeout=300, check=False
    )
    assert ended.returncode in ((0, 1) if code is None else (code,)), ended.stdout + ended.stderr
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


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: the twin is NOT TESTED"
)
def test_prunability_compares_twins_and_tells_of_weights_without_a_gradient(folder: Path) -> None:
    off = onnx.load(folder / "alone.onnx")
    (output,) = off.graph.output
    off.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    off.graph.node.append(onnx.helper.make_node("Mul", [output.name, "nothing"], ["off"]))
    output.name = "off"
    onnx.save(off, folder / "off.onnx")
    out = folder / "rows.json"
    told = run("prunability.py", folder, "--twin", "--json", out, code=1)
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"alone": "ok", "broken": "refused", "off": "FAIL", "open": "ok"}
    assert "4 convolutional files: 1 FAIL, 2 ok, 1 refused" in told
    assert rows["open"]["difference"] <= rows["open"]["tolerance"] == 1e-4
    assert (rows["open"]["dead"], rows["open"]["broken"], rows["open"]["changed"]) == ([], [], [])
    assert "gradients zero" in rows["off"]["reason"]


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


def test_cost_measures_passes_runs_and_memory(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("cost.py", "blocks:1:8", "--random", 16, "--target", "macs=60%", "--threads", 1, "--json", out)
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert (row["network"], row["samples"], row["method"]) == ("blocks:1:8", 16, "thinet-onnx")
    assert len(row["passes"]) == 3
    assert min(row["passes"]) <= row["pass"] <= max(row["passes"])
    assert row["ratio"] == pytest.approx(row["seconds"] / (2 * row["pass"]))
    assert sum(row["stages"].values()) == pytest.approx(row["seconds"], rel=0.2)
    assert row["peak"] > 50e6  # Python and its libraries alone
    assert row["macs"] == pytest.approx(0.6, abs=0.05)


def test_cost_names_what_is_missing() -> None:
    assert "name a network, or a --suite" in run("cost.py", code=2)
    assert "lies.onnx" in run("cost.py", "lies.onnx", code=2)
    told = run("cost.py", "blocks:1:8", "--random", 16, "--limit", 0.01, code=1)
    assert "hang: no answer within 0 s" in told


def test_cost_per_block_is_held_against_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cost  # noqa: PLC0415

    rows = [{"network": f"blocks:{count}", "seconds": 5 + 1.0 * count} for count in (8, 32, 64)]
    assert cost.steady(rows) == (
        True,
        "seconds per block from 32 to 64 blocks: the most is 1.07 times the least, within 1.2",
    )
    holds, told = cost.steady([*rows, {"network": "blocks:128", "seconds": 200.0}])
    assert not holds
    assert "1.45 times the least, MORE than 1.2" in told


def test_latency_measures_prunes_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out, files = tmp_path / "rows.json", tmp_path / "files"
    command = ["latency.py", "blocks:1:8", "--targets", "macs=60%", "macs=2%", "--round-to", 1, "--engines", "ort",
               "--batches", 2, "--samples", 16, "--seconds", 0.1, "--threads", 1, "--files", files, "--json", out]  # fmt: skip
    run(*command, code=None)  # 1 where so small a network isn't faster
    met, least = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert met["macs"] == pytest.approx(0.6, abs=0.05)
    assert met["reached"] == "macs=60%"
    assert met["low"] <= met["ratio"] <= met["high"]
    assert least["note"].startswith("macs=2% can't be reached")
    assert 0.02 < least["macs"] < met["macs"]
    assert len(list(files.glob("*.onnx"))) == 2
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"][:1]
    out.write_text(json.dumps({"rows": [{**rows[0], "note": "was there"}]}), encoding="utf-8")
    run(*command, code=None)
    again = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["note"].partition(" can't")[0] for row in again] == ["was there", "macs=2%"]


def test_latency_means_are_geometric_and_slower_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import latency  # noqa: PLC0415

    same = {"target": "macs=50%", "round_to": 8, "engine": "ort", "batch": 1, "reached": "macs=50%", "macs": 0.5}
    times = {"dense_ms": 1.0, "low": 0.4, "high": 1.7}
    rows = [
        {**same, **times, "network": "a", "ratio": 0.4, "pruned_ms": 0.4},
        {**same, **times, "network": "b", "ratio": 1.6, "pruned_ms": 1.6},
        {**same, "network": "c", "note": "hang: no answer", "failed": "hang"},
    ]
    (told,) = latency.means(rows)
    assert told.endswith("0.800  over 2 networks")
    assert ["SLOWER" in latency.line(row) for row in rows] == [False, True, False]


def test_latency_accuracy_finds_the_macs_that_take_as_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import latency_accuracy  # noqa: PLC0415

    shares: dict[Path, float] = {}

    def child(function: Any, case: Any, *arguments: Any, **_: Any) -> Any:
        """A machine on which time is 0.3 + 0.7 × MACs, and files pruned to 65% of it keep 45% of the MACs."""
        if function is latency_accuracy.pruned:
            target, _, path = arguments
            shares[path] = 0.45 if target == "latency=65%" else float(target[5:-1]) / 100
            return {"macs": shares[path], "note": ""}
        if function is latency_accuracy.measured:
            return [0.65 if path.stem == "latency" else 0.3 + 0.7 * shares[path] for path in arguments[0]]
        rows = [{"macs": shares[path], "error": 0.1, "accuracy": 0.9} for path in arguments[0]]
        return [{"macs": 1.0, "error": 0.0, "accuracy": 0.95}, *rows]

    monkeypatch.setattr(latency_accuracy, "in_child", child)
    out = tmp_path / "found.json"
    given = [f"--{name}={MODELS / 'fashion_vgg.onnx'}" for name in ("model", "calibration", "test")]
    assert latency_accuracy.main([*given, "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found["steps"]) < 5
    dense, timed, counted = found["rows"]
    assert (dense["ratio"], timed["ratio"], timed["macs"]) == (1.0, 0.65, 0.45)
    assert counted["macs"] == pytest.approx(0.5, abs=0.01)  # where 0.3 + 0.7 × MACs is 0.65
    assert counted["ratio"] == pytest.approx(0.65, rel=0.01)
    assert "MACs target" in capsys.readouterr().out


def bundled(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A case of `accuracy.py` on a network of the repository, calibrated and tested on the same labelled images."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import accuracy_cases  # noqa: PLC0415

    images = MODELS / "fashion_test.npz"
    return accuracy_cases.Case(
        MODELS / f"{name}.onnx", images, images, (0.7,), samples=32, tests=8, pixels={"mean": (0.286,), "std": (0.353,)}
    )


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")
def test_engines_holds_a_pruned_file_against_the_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = bundled(monkeypatch, "fashion_resnet")
    import engines  # noqa: PLC0415

    row = engines.measured(case, "macs=70%", "inner", tmp_path / "pruned.onnx")
    assert row["macs"] == pytest.approx(0.7, abs=0.05)
    assert row["difference"] < engines.BAR
    assert row["inputs"] == row["images"] == 8
    assert engines.good(row)
    assert row["padded"] > 0  # the picture has one channel
    (told,) = [entry for entry in row["findings"] if entry["topic"] == "widths"]
    assert f"{row['padded']} of {row['layers']} layers have channels off multiples of 8" in told["text"]
    assert "ok" in engines.line(row)
    assert engines.told(row)[0] == "fashion_resnet"
    over = {**row, "difference": 2e-3}
    assert "OVER" in engines.line(over)
    assert not engines.good(over)
    broken = {**row, "ready": False}
    assert engines.line(broken).endswith("NO")
    assert not engines.good(broken)
    assert not engines.good({"network": "a", "failed": "hang", "note": "no answer"})


def test_engines_goes_on_after_a_network_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = bundled(monkeypatch, "fashion_resnet")
    import engines  # noqa: PLC0415

    def child(*_: Any, **__: Any) -> Any:
        raise engines.ChildError("hang", "no answer within 1 s")

    monkeypatch.setattr(engines, "in_child", child)
    other = dataclasses.replace(case, model=MODELS / "fashion_vgg.onnx")
    monkeypatch.setattr(engines, "cases", lambda *_: [case, other])
    monkeypatch.setattr(engines.engines, "missing", lambda _: None)
    assert engines.main(["--shared", ".", "--json", str(tmp_path / "rows.json")]) == 1
    assert "0 of 2 load and agree" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert [row["failed"] for row in rows] == ["hang", "hang"]


def test_engines_measures_a_network_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = bundled(monkeypatch, "fashion_resnet")
    import engines  # noqa: PLC0415

    found = {
        "network": "fashion_resnet", "macs": 0.6, "errors": {"logits": 0.2}, "difference": 1e-6, "original": None,
        "findings": [], "layers": 9, "padded": 1, "extra": 0.01, "ready": True, "failures": [],
    }  # fmt: skip
    monkeypatch.setattr(engines, "in_child", lambda *_, **__: found)
    monkeypatch.setattr(engines, "cases", lambda *_: [case])
    monkeypatch.setattr(engines.engines, "missing", lambda _: None)
    command = ["--shared", ".", "--json", str(tmp_path / "rows.json")]
    assert engines.main(command) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(engines, "in_child", None)
    assert engines.main(command) == 0
    assert capsys.readouterr().out == first
    assert "1 of 1 load and agree" in first
    monkeypatch.setattr(engines, "in_child", lambda *_, **__: found | {"difference": 0.1})
    assert engines.main([*command, "--target", "macs=50%"]) == 1


def test_engines_measures_ten_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled(monkeypatch, "fashion_resnet")
    import engines  # noqa: PLC0415

    found = engines.cases(Path("shared"), 32, 8)
    assert len({case.model for case in found}) == len(found) == 10
    assert {(case.samples, case.tests) for case in found} == {(32, 8)}


def test_int8_counts_images_that_neither_step_saw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = bundled(monkeypatch, "fashion_vgg")
    import int8  # noqa: PLC0415

    monkeypatch.setattr(int8, "imagenet", lambda _: [case])
    out = tmp_path / "found.json"
    command = ["--shared", ".", "--parts", "20", "--samples", "48", "--settings", "minmax", "fused", "percentile",
               "--files", str(tmp_path / "files"), "--json", str(out)]  # fmt: skip
    assert int8.main(command) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [len(fold["labels"]) for fold in found["folds"]] == [100, 100]
    assert found["rows"]["float"]["images"] == 200
    assert found["rows"]["original"]["with original"] == 1
    row = found["rows"]["minmax"]
    assert row["with float"] > 0.9
    assert row["lost"] == pytest.approx(found["rows"]["float"]["with original"] - row["with original"])
    pairs = {}
    for setting in ("minmax", "fused"):
        kinds = [
            node.op_type for node in onnx.load(tmp_path / "files" / f"fashion_vgg_macs75_0_{setting}.onnx").graph.node
        ]
        pairs[setting] = kinds.count("QuantizeLinear")
    assert pairs["fused"] < pairs["minmax"]  # none between Conv and Relu
    sizes = found["folds"][0]["bytes"]
    assert sizes["minmax"] < 0.5 * sizes["float"] < sizes["original"]
    assert "holds" in capsys.readouterr().out


def test_int8_parts_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bundled(monkeypatch, "fashion_vgg")
    import int8  # noqa: PLC0415

    seen: list[int] = []
    for fold in range(4):
        fit, test = int8.divided(case, 4, fold, 10_000)
        assert not set(fit._rows) & set(test._rows)
        assert len(fit) + len(test) == 2000
        seen += test._rows
    assert sorted(seen) == list(range(2000))


def test_int8_bar_is_two_points(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled(monkeypatch, "fashion_vgg")
    import int8  # noqa: PLC0415

    labels, original = [0, 0, 1, 1] * 25, [0, 0, 1, 1] * 25
    worse = [1 - pick if row < 3 else pick for row, pick in enumerate(original)]
    found = {"labels": labels, "picks": {"original": original, "float": original, "minmax": worse}}
    row = int8.counted("minmax", [found])
    assert (row["with original"], row["with float"], row["accuracy"]) == (0.97, 0.97, 0.97)
    assert "lost +3.0 points  MISSES" in int8.line("minmax", row)
    worse[0] = original[0]
    assert int8.holds(int8.counted("minmax", [found]))  # 2 points

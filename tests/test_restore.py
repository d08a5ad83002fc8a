"""The JSON of a run, back as a report; what is no report is refused in one sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from page_reports import HOSTILE, UNKNOWN
from test_report import INSPECTION, REPORT
from typer.testing import CliRunner

from thinet_onnx import cli, report, restore
from thinet_onnx.errors import ReportError
from thinet_onnx.result import to_dict

OLDER = (
    "held", "tradeoff", "examples", "finetune", "command", "finished",
)  # fmt: skip  # fields that reports of the first version don't have


@pytest.mark.parametrize("which", [REPORT, HOSTILE])
def test_it_comes_back_as_it_was(which: Any, tmp_path: Path) -> None:
    report.write_json(which, tmp_path / "r.json")
    found = restore.load_report(tmp_path / "r.json")
    assert dataclasses.replace(found, options=which.options) == which
    assert json.loads(json.dumps(which.options)) == found.options


def test_numbers_that_json_lacks_come_back_as_none(tmp_path: Path) -> None:
    report.write_json(UNKNOWN, tmp_path / "r.json")
    found = restore.load_report(tmp_path / "r.json")
    assert found.oracle_error != found.oracle_error
    report.write_json(found, tmp_path / "again.json")
    again, first = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("again.json", "r.json"))
    assert again == first


def test_an_older_report_is_read(tmp_path: Path) -> None:
    plain = {key: value for key, value in to_dict(REPORT).items() if key not in OLDER}
    for row in plain["groups"]:
        del row["curve"], row["sensitivity"]
    for row in plain["fidelity"]:
        del row["errors"], row["cosines"]
    (tmp_path / "r.json").write_text(json.dumps(plain), encoding="utf-8")
    assert restore.load_report(tmp_path / "r.json") == REPORT


def test_what_a_newer_version_adds_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(to_dict(REPORT) | {"later": 1}), encoding="utf-8")
    assert restore.load_report(tmp_path / "r.json") == REPORT


def changed(**values: Any) -> str:
    return json.dumps(to_dict(REPORT) | values)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no JSON"),
        ("<html>", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no report"),
        ("{}", "is no report"),
        ("null", "is no report"),
        (json.dumps(to_dict(INSPECTION)), "is of inspect, which measures nothing"),
        (changed(model=3), r"expected str @ report\.model"),
        (changed(before={"macs": 1.5, "params": 1, "bytes": 1}), r"expected int @ report\.before\.macs"),
        (changed(target_met="yes"), r"expected bool @ report\.target_met"),
        (changed(seconds="1"), r"expected float @ report\.seconds"),
        (changed(seconds=True), r"expected float @ report\.seconds"),
        (changed(groups=[{}]), r"required field missing @ report\.groups\[0\]\.name.* …\)"),
        (changed(plan=None), r"report\.plan"),
        (changed(finetune={"steps": [[1, 2, 3]]}), r"report\.finetune\.steps\[0\]"),
        (
            changed(examples={"samples": [{"sample": "a", "why": "", "label": None, "error": None,
                                           "picture": {"kind": "svg+xml", "data": "", "width": 1, "height": 1}}]}),
            r"picture\.kind",
        ),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=complaint):
        restore.load_report(tmp_path / "r.json")
    outcome = CliRunner().invoke(cli.app, ["report", str(tmp_path / "r.json")])
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert len(outcome.stderr.splitlines()) == 1
    assert [found.name for found in tmp_path.iterdir()] == ["r.json"]


def test_files_that_cant_be_read(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="No such file"):
        restore.load_report(tmp_path / "missing.json")
    with pytest.raises(ReportError, match="it is a folder"):
        restore.load_report(tmp_path)
    (tmp_path / "r.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match="is no JSON"):
        restore.load_report(tmp_path / "r.json")

"""docs/operators.md is what the tool makes of the rule table today; the examples of CONTRIBUTING.md are true."""

import importlib.util
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from thinet_onnx.rules import RULES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("operators", ROOT / "tools" / "operators.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_current(tool: ModuleType) -> None:
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run: python tools/operators.py"


def test_every_operator_has_one_entry(tool: ModuleType) -> None:
    rows = [line for line in tool.page().splitlines() if line.startswith("| `")]
    named = [kind for row in rows for kind in re.findall(r"`([\w.:]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(RULES)


def test_every_rule_says_what_it_does(tool: ModuleType) -> None:
    rows = [line.split(" | ") for line in tool.page().splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and row[1].endswith(".") for row in rows)


def test_reasons_are_those_of_the_rule_and_of_what_it_calls(tool: ModuleType) -> None:
    found = set(tool.phrases("thinet_onnx.rules.layout", "slice_"))
    assert "is sliced with step … in …" in found
    assert "is padded by amounts that are not known before the run" not in found
    assert "is a kernel's extent" in set(tool.phrases("thinet_onnx.rules.linear", "convolution"))
    assert "is the bias of channels that stay" in set(tool.phrases("thinet_onnx.rules.linear", "gemm"))


def test_examples_of_contributing_are_in_the_code() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    function, row = (textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.M | re.S))
    assert function in (ROOT / "thinet_onnx" / "rules" / "layout.py").read_text(encoding="utf-8")
    assert row in (ROOT / "tests" / "test_rules.py").read_text(encoding="utf-8")

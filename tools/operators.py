"""Write `docs/operators.md`: all operators of the rule table, what their rules say, and why channels stay at them.

Everything in it is read from `thinet_onnx.rules`: the docstrings of the rules, and the phrases with which they freeze.

    python tools/operators.py
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx

from thinet_onnx.rules import RULES
from thinet_onnx.rules.context import Rule

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
INTRODUCTION = """\
# Operators

<!-- Made by tools/operators.py from the rule table; change the rules, not this file. -->

What the {count} operators of the rule table do to channels ([how the rules work](design.md#which-channels-belong-together)).
A number behind a name is the first operator set that has the operator, where that is later than 7, the oldest one that is
tested. The last column holds the phrases with which `thinet-onnx inspect` explains what stays; "…" stands for names. An
operator that isn't here keeps what it touches; [adding one](../CONTRIBUTING.md#add-an-operator) takes a function of a few
lines, or a name in a list.
"""
OLDEST = 7
PHRASE = re.compile(r"[a-z]+s\b.* ")  # "is pooled over in …": a verb, and more


def page() -> str:
    """The whole file."""
    modules: dict[str, dict[Rule, list[str]]] = {}
    for kind, rule in RULES.items():
        modules.setdefault(rule.__module__, {}).setdefault(rule, []).append(kind)
    parts = [INTRODUCTION.format(count=len(RULES))]
    for module in sorted(modules):
        head = (inspect.getdoc(importlib.import_module(module)) or "").split("\n\n")[0]
        parts.append(f"## {module.rpartition('.')[2].capitalize()}\n\n{' '.join(head.split())}\n")
        parts.append("| operators | what happens to channels | a channel stays where it … |\n|---|---|---|")
        parts += [row(rule, kinds) for rule, kinds in modules[module].items()]
        parts.append("")
    return "\n".join(parts)


def row(rule: Rule, kinds: list[str]) -> str:
    says = " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
    reasons = "; ".join(sorted(set(phrases(rule.__module__, rule.__name__))))
    return f"| {', '.join(map(named, kinds))} | {says} | {reasons} |".replace("|  |", "| |")


def named(kind: str) -> str:
    """An operator, with the first operator set that has it."""
    first = 0 if "::" in kind else min(s.since_version for s in history()[kind])
    return f"`{kind}`" + (f" {first}" if first > OLDEST else "")


@cache
def history() -> dict[str, list[onnx.defs.OpSchema]]:
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            found.setdefault(schema.name, []).append(schema)
    return found


@cache
def functions(module: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def phrases(module: str, name: str) -> Iterator[str]:
    """The reasons that a function gives, and those of the functions that it calls in its module."""
    body = functions(module)[name].body[1:] or functions(module)[name].body
    inner = [node for statement in body for node in ast.walk(statement)]
    parts = {id(value) for node in inner if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in inner:
        if isinstance(node, ast.Name) and node.id in functions(module) and node.id != name:
            yield from phrases(module, node.id)
        text = worded(node) if id(node) not in parts else ""
        if PHRASE.match(text):
            yield text


def worded(node: ast.AST) -> str:
    """A string of the source, "…" in the place of what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(worded(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    return ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""`--config`: a file's options become arguments in front of those that were typed."""

import difflib
import inspect
import itertools
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from typer.core import TyperCommand

from thinet_onnx import config, files
from thinet_onnx.cli.shared import one_line_errors
from thinet_onnx.errors import OptionError

_IN_PLACE_OF = ({"target", "keep", "preset"}, {"data", "random-data"}, {"epochs", "steps"})
"""Options that stand for one another: where one is typed, those of the file give way."""

_JOINED = {"X[,X..]": ",", "N[,N..]": ",", "HxW": "x"}  # texts that may be numbers in a file, by what help calls them
_NUMBER = re.compile(r"-?[0-9.]+,?")
_LONGEST = 60  # characters of a value in a message


class ConfiguredCommand(TyperCommand):
    """A command whose `--config` FILE may hold any of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the file's options apart like those that were typed; not while a shell asks for completions."""
        if not ctx.resilient_parsing:
            self._check_commas(ctx, args)
        return super().parse_args(ctx, args if ctx.resilient_parsing else [*self._from_file(ctx, args), *args])

    def _check_commas(self, ctx: Any, args: list[str]) -> None:
        """Refuse `--mean 0.485 0.456 0.406`, which would be taken for files called 0.456 and 0.406."""
        lists = {
            name for param in self.get_params(ctx) if _JOINED.get(param.metavar or "") == "," for name in param.opts
        }
        for place, name in enumerate(args):
            if name in lists:
                values = [text.strip(",") for text in itertools.takewhile(_NUMBER.fullmatch, args[place + 1 :])]
                if len(values) > 1:
                    with one_line_errors("--debug" in args):
                        raise OptionError(
                            f"{name} {' '.join(values)}: write {name} {','.join(values)}, without spaces."
                        )

    def _from_file(self, ctx: Any, args: list[str]) -> list[str]:
        typed, *_ = self.make_parser(ctx).parse_args(args=list(args))
        if "help" in typed or not typed.get("config"):
            return []
        known = _options(self, ctx)
        names = {name for name, option in known.items() if option.parameter in typed}
        taken = names.union(*(group for group in _IN_PLACE_OF if group & names))
        with one_line_errors("debug" in typed):
            file = File(Path(typed["config"]))
            found = file.arguments(str(self.name), known, [str(name) for name in ctx.parent.command.commands])
            return [text for name, texts in found.items() if name not in taken for text in texts]


@dataclass(frozen=True)
class Option:
    """An option as a file has it: long name, the command's parameter, its Python type, and what help calls its value."""

    name: str
    parameter: str
    kind: Any
    metavar: str

    def arguments(self, value: Any) -> list[str] | None:
        """The value as arguments, `--name=text` each; None if it is of another kind."""
        if self.kind is bool:
            return ([f"--{self.name}"] if value else []) if isinstance(value, bool) else None
        repeated = typing.get_origin(self.kind) is list
        values = value if repeated and isinstance(value, list) else [value]
        texts = [self._text(one) for one in values]
        return None if None in texts else [f"--{self.name}={text}" for text in texts]

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        if typing.get_origin(self.kind) is list:
            return "a text, or a list of texts"
        if typing.get_origin(self.kind) is Literal:
            return f"one of {', '.join(typing.get_args(self.kind))}"
        if self.metavar in _JOINED:
            return f"a number, a list of numbers, or a text such as {self.metavar}"
        return {bool: "true or false", int: "a whole number", float: "a number"}.get(self.kind, "a text")

    def _text(self, value: Any) -> str | None:
        if isinstance(value, bool):
            return None
        if self.kind in (int, float):
            return repr(value) if isinstance(value, int if self.kind is int else int | float) else None
        if self.metavar in _JOINED:
            parts = value if isinstance(value, list) and value else [value]
            if all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
                return _JOINED[self.metavar].join(map(repr, parts))
        if not isinstance(value, str):
            return None
        return value if typing.get_origin(self.kind) is not Literal or value in typing.get_args(self.kind) else None


class File:
    """A TOML file, or a pruned model that carries one.

    Raises:
        OptionError: it can't be read, or is no TOML.
        ModelError: it is called .onnx, and can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values = tomllib.loads(self._text())
        except tomllib.TOMLDecodeError as error:
            raise OptionError(f"--config {path} is no TOML: {error}.") from None

    def _text(self) -> str:
        if self.path.suffix == ".onnx":
            from thinet_onnx import graph  # noqa: PLC0415

            found = {entry.key: entry.value for entry in graph.read(self.path).metadata_props}
            if config.KEY not in found:
                raise OptionError(
                    f"--config {self.path} holds no configuration: give a .toml file, or a model that thinet-onnx pruned."
                )
            return str(found[config.KEY])
        try:
            return files.read_text(self.path)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise OptionError(
                f"--config {self.path} can't be read ({reason}): give a .toml file, or a model that thinet-onnx pruned."
            ) from None

    def arguments(self, command: str, known: Mapping[str, Option], commands: Sequence[str]) -> dict[str, list[str]]:
        """Arguments by the name of the option: of the top of the file, and then of the command's own table.

        What a network is fed with is left out where the command takes no data, such as `inspect`.

        Raises OptionError for a name that isn't an option's, and for a value of another kind.
        """
        tables = {name for name, value in self.values.items() if name in commands and isinstance(value, dict)}
        found = {}
        for place, values in (("", self.values), (f"[{command}] ", self.values[command] if command in tables else {})):
            for name, value in values.items():
                if place or (name not in tables and (name in known or name not in config.FED)):
                    found[name] = self._option(f"{place}{name}", value, command, known.get(name), [*known])
        return found

    def _option(self, key: str, value: Any, command: str, option: Option | None, names: list[str]) -> list[str]:
        if option is None:
            near = difflib.get_close_matches(key.rpartition(" ")[2], names, 1)
            hint = f"did you mean {near[0]}?" if near else f"thinet-onnx {command} --help lists them."
            raise OptionError(f"--config {self.path}: {key} is no option of {command}; {hint}")
        texts = option.arguments(value)
        if texts is None:
            shown = repr(value) if len(repr(value)) <= _LONGEST else f"{repr(value)[:_LONGEST]}…"
            raise OptionError(f"--config {self.path}: {key} = {shown} does not fit: it must be {option.wanted}.")
        return texts


def _options(command: TyperCommand, ctx: Any) -> dict[str, Option]:
    """The options of a command by their long names."""
    assert command.callback is not None
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    return {option.name: option for param in command.get_params(ctx) for option in _named(param, hints)}


def _named(param: Any, hints: Mapping[str, Any]) -> Iterator[Option]:
    if param.param_type_name != "option" or param.name not in hints or param.name == "config":
        return
    kind = hints[param.name]
    if typing.get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
    for name in param.opts:
        if name.startswith("--"):
            yield Option(name.removeprefix("--"), param.name, kind, param.metavar or "")

"""The options of a run: their spelling, and what contradicts what."""

from typing import Any

import pytest

from thinet_onnx.errors import OptionError
from thinet_onnx.options import PruneOptions, Silent, Target, parse_bytes, parse_shapes

HALF = Target("macs", 0.5, True)


@pytest.mark.parametrize(
    ("text", "expected", "again"),
    [
        ("macs=50%", Target("macs", 0.5, True), "macs=50%"),
        ("params=12.5%", Target("params", 0.125, True), "params=12.5%"),
        ("params=0.5", Target("params", 0.5, True), "params=50%"),
        (" macs=50 % ", Target("macs", 0.5, True), "macs=50%"),
        ("macs=2.0G", Target("macs", 2e9, False), "macs=2e+09"),
        ("macs=300m", Target("macs", 3e8, False), "macs=3e+08"),
        ("params=40k", Target("params", 4e4, False), "params=4e+04"),
        ("params=1200", Target("params", 1200.0, False), "params=1200"),
        ("macs=1T", Target("macs", 1e12, False), "macs=1e+12"),
    ],
)
def test_targets(text: str, expected: Target, again: str) -> None:
    assert Target.parse(text) == expected
    assert str(expected) == again


@pytest.mark.parametrize(
    "text",
    [
        "",
        "50%",
        "macs",
        "macs=",
        "macs=half",
        "flops=50%",
        "latency=50",
        "macs=1.2.3%",
        "macs=.",
        "macs=-50%",
        "macs=5X",
    ],
)
def test_targets_that_are_not_understood(text: str) -> None:
    with pytest.raises(OptionError, match="is not understood: write what is to remain"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["macs=0%", "macs=100%", "macs=150%", "params=1", "params=0"])
def test_shares_that_leave_nothing_to_do(text: str) -> None:
    with pytest.raises(OptionError, match="must lie between 0% and 100%"):
        Target.parse(text)


@pytest.mark.parametrize(("text", "meant"), [("macs=50", "macs=50%"), ("params=12.5", "params=12.5%")])
def test_a_share_without_its_sign(text: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"write {meant} for a share"):
        Target.parse(text)


def test_shapes() -> None:
    assert parse_shapes([]) == {}
    assert parse_shapes(["x:1,3,224,224", "b:0:2x8", "n:7"]) == {"x": (1, 3, 224, 224), "b:0": (2, 8), "n": (7,)}


@pytest.mark.parametrize("text", ["", "x", "x:", ":1,3", "x:1,,3", "x:1,0", "x:1,-3", "x:a", "1,3,224,224", "x:1.5"])
def test_shapes_that_are_not_understood(text: str) -> None:
    with pytest.raises(OptionError, match="is not understood: write the input's name and sizes"):
        parse_shapes([text])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --target .*, --keep .* or --preset"),
        ({"target": HALF, "keep": 0.5}, "either --target .*, --keep .* or --preset"),
        ({"keep": 0.0}, "--keep 0: "),
        ({"keep": 1.0}, "--keep 1: "),
        ({"keep": float("nan")}, "--keep nan"),
        ({"target": HALF, "method": "best"}, "--method 'best' is unknown: choose one of obs, thinet, "),
        (
            {"target": HALF, "reconstruct": "half"},
            "--reconstruct 'half' is unknown: choose one of joint, full, scale, none",
        ),
        ({"target": HALF, "scope": "outer"}, "--scope 'outer' is unknown: choose one of inner, all"),
        ({"target": HALF, "round_to": 0}, "--round-to 0"),
        ({"target": HALF, "samples": 1}, "--samples 1"),
        ({"target": HALF, "include": ("ok", "(")}, r"--include '\(' is not a regular expression"),
        ({"target": HALF, "exclude": ("[",)}, r"--exclude '\[' is not a regular expression"),
    ],
)
def test_options_that_contradict_or_are_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PruneOptions(**options)


def test_options_of_either_kind() -> None:
    assert PruneOptions(target=HALF).keep is None
    assert PruneOptions(keep=0.5, round_to=1, samples=2, include=("a|b",)).target is None


def test_nobody_has_to_watch() -> None:
    silent = Silent()
    silent.start("stage", 3)
    silent.advance(2)
    silent.close()


@pytest.mark.parametrize(
    ("text", "expected"), [("2G", 2e9), ("500M", 5e8), ("1.5g", 1.5e9), ("0", 0.0), ("4096", 4096.0)]
)
def test_bytes(text: str, expected: float) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1G", "2X", "1e9"])
def test_bytes_that_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--memory"):
        parse_bytes(text)


@pytest.mark.parametrize(("name", "value"), [("positions", 0), ("memory", -1.0), ("memory", float("nan"))])
def test_memory_and_positions_are_checked(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"--{name}"):
        PruneOptions(keep=0.5, **{name: value})  # type: ignore[arg-type]

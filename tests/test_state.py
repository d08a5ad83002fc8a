"""Runs that are killed and go on, and moments that serve several runs: the same bytes as in one go, or a clear refusal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from small_models import Net
from typer.testing import CliRunner

from thinet_onnx import archive, cli, pipeline
from thinet_onnx.errors import StateError
from thinet_onnx.options import PruneOptions, Silent, Storage, Target

TESTS = Path(__file__).parent
HALF = Target("macs", 0.5, True)


class StoppedError(Exception):
    """In place of a signal."""


class Stops(Silent):
    """Counts what happens in a run, and ends it by raising, or as the kernel does, at the given event."""

    def __init__(self, at: int = -1, *, kill: bool = False) -> None:
        self.events = 0
        self.stages: list[str] = []
        self._at, self._kill = at, kill

    def start(self, stage: str, total: int) -> None:
        self.stages.append(stage)
        self._count()

    def advance(self, steps: int = 1) -> None:
        self._count()

    def _count(self) -> None:
        self.events += 1
        if self.events == self._at:
            if self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise StoppedError


def images(count: int = 96, seed: int = 1) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.standard_normal((count, 3, 4, 4)), np.ones((2, 2)))
    return (coarse + 0.3 * rng.standard_normal(coarse.shape)).astype(np.float32)


def joined() -> onnx.ModelProto:
    """A layer that two others read, a chain that is refitted jointly, a residual sum."""
    net = Net()
    stem = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 12, name="stem"))
    left, right = (net.relu(net.conv(stem, 12, 10, name=name)) for name in ("left", "right"))
    x = net.relu(net.conv(net.node("Concat", left, right, axis=1), 20, 8, name="mix"))
    x = net.relu(net.node("Add", x, net.conv(net.relu(net.conv(x, 8, 12, name="a")), 12, 8, name="b")))
    return net.model(net.head(x, 8))


def run(
    output: Path, progress: Silent | None = None, data: np.ndarray[Any, Any] | None = None,
    model: onnx.ModelProto | None = None, storage: Storage | None = None, **options: Any,
) -> pipeline.PruneResult:  # fmt: skip
    options = {"target": HALF, "scope": "all", "round_to": 1} | options
    return pipeline.prune(
        model or joined(), images() if data is None else data, PruneOptions(**options), output=output,
        progress=progress or Silent(), storage=storage,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[bytes, int]]:
    """The bytes of a run in one go, and how many events it had, by its options."""
    folder, known = tmp_path_factory.mktemp("whole"), dict[str, tuple[bytes, int]]()

    def made(**options: Any) -> tuple[bytes, int]:
        if repr(options) not in known:
            count = Stops()
            run(folder / "whole.onnx", count, **options)
            known[repr(options)] = (folder / "whole.onnx").read_bytes(), count.events
        return known[repr(options)]

    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reconstruct": "full"},
        {"method": "thinet-sampled"},
        {"target": None, "keep": 0.5},
    ],
    ids=str,
)
def test_a_run_that_is_interrupted_again_and_again_ends_in_the_same_file(
    tmp_path: Path, whole: Callable[..., tuple[bytes, int]], options: dict[str, Any]
) -> None:
    expected, events = whole(**options)
    output, storage = tmp_path / "out.onnx", Storage(tmp_path / "state")
    at, interruptions = 3, 0
    while at < 4 * events:
        try:
            run(output, Stops(at), storage=storage, **options)
            break
        except StoppedError:
            interruptions += 1
            assert not output.exists()
            at += 5
    assert interruptions >= 3
    assert output.read_bytes() == expected
    assert json.loads((tmp_path / "state" / "run.json").read_text())["done"]


def test_a_run_that_goes_on_computes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path / "state")
    count = Stops()
    before = run(tmp_path / "a.onnx", count, storage=storage)
    assert "Observing the original" in count.stages
    monkeypatch.setattr("thinet_onnx.sweep.Watcher.add", None)
    monkeypatch.setattr("thinet_onnx.choose.Chooser.order", None)
    again = Stops()
    after = run(tmp_path / "b.onnx", again, storage=storage)
    assert "Observing the original" not in again.stages
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    assert after.report.groups == before.report.groups
    assert after.report.tradeoff == before.report.tradeoff


SCRIPT = """
import sys
from pathlib import Path
import test_state
from thinet_onnx.options import Storage
folder, at = Path(sys.argv[1]), int(sys.argv[2])
test_state.run(folder / "out.onnx", test_state.Stops(at, kill=True), storage=Storage(folder / "state"))
"""


def child(folder: Path, at: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(at)], env=environment)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_process_leaves_a_state_to_go_on_from(tmp_path: Path, whole: Callable[..., tuple[bytes, int]]) -> None:
    expected, events = whole()
    for at in (events // 3, events // 2):
        assert child(tmp_path, at).wait(timeout=300) == -signal.SIGKILL
    with child(tmp_path, -1) as killed:  # and from outside, once a further step is there
        limit = time.monotonic() + 300
        known = len(list((tmp_path / "state").glob("step-*.npz")))
        while len(list((tmp_path / "state").glob("step-*.npz"))) <= known and time.monotonic() < limit:
            time.sleep(0.01)
        killed.kill()
    assert not (tmp_path / "out.onnx").exists() or (tmp_path / "out.onnx").read_bytes() == expected
    assert child(tmp_path, -1).wait(timeout=300) == 0
    assert (tmp_path / "out.onnx").read_bytes() == expected
    assert not list((tmp_path / "state").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "another --seed"),
        ({"target": Target("macs", 0.6, True)}, "another --target"),
        ({"round_to": 2, "scope": "inner"}, "another --scope and another --round-to"),
        ({"data": images(seed=2)}, "other data, or other preprocessing of it"),
        ({"model": small_models.plain()}, "another model"),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    storage = Storage(tmp_path / "state")
    with pytest.raises(StoppedError):
        run(tmp_path / "out.onnx", Stops(4), storage=storage)
    with pytest.raises(StateError) as caught:
        run(tmp_path / "out.onnx", storage=storage, **change)
    assert str(caught.value) == (
        f"{tmp_path / 'state'} is of another run ({told}); name another folder with --state, or delete this one."
    )


def test_the_state_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path / "state")
    with pytest.raises(StoppedError):
        run(tmp_path / "out.onnx", Stops(4), storage=storage)
    monkeypatch.setattr("thinet_onnx.summary.__version__", "99.0")
    with pytest.raises(StateError, match="another version of thinet-onnx"):
        run(tmp_path / "out.onnx", storage=storage)


@pytest.mark.parametrize("name", ["run.json", "moments.npz", "decision.json", "step-0001.npz"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"[]", b"PK\x03\x04 and so on"])
def test_a_damaged_state_is_refused(tmp_path: Path, finished: Path, name: str, content: bytes) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for file in finished.iterdir():
        (state / file.name).write_bytes(content if file.name == name else file.read_bytes())
    with pytest.raises(StateError, match=name):
        run(tmp_path / "out.onnx", storage=Storage(state))
    assert not (tmp_path / "out.onnx").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run that is done; its moments are used by other tests."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder / "out.onnx", storage=Storage(folder / "state"))
    return folder / "state"


def test_steps_of_another_run_are_not_taken(tmp_path: Path, finished: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(StoppedError):
        run(tmp_path / "out.onnx", Stops(4), storage=Storage(state), seed=1)
    (state / "step-0000.npz").write_bytes((finished / "step-0000.npz").read_bytes())
    with pytest.raises(StateError, match=r"step-0000\.npz is of another run"):
        run(tmp_path / "out.onnx", storage=Storage(state), seed=1)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "moments.npz"
    np.savez(path, about=np.array([print], object))
    with pytest.raises(StateError, match="nothing else is loaded"):
        archive.read(path, "an archive")
    np.save(tmp_path / "one.npz.npy", np.zeros(3))
    with pytest.raises(StateError, match=r"it is no \.npz file"):
        archive.read(tmp_path / "one.npz.npy", "an archive")


class TestMoments:
    @pytest.mark.parametrize("options", [{}, {"scope": "inner"}, {"method": "thinet", "reconstruct": "scale"}], ids=str)
    def test_they_serve_every_target(
        self, tmp_path: Path, whole: Callable[..., tuple[bytes, int]], options: dict[str, Any]
    ) -> None:
        file = tmp_path / "moments.npz"
        run(tmp_path / "first.onnx", storage=Storage(save_moments=file), target=Target("params", 0.7, True), **options)
        count = Stops()
        run(tmp_path / "out.onnx", count, storage=Storage(from_moments=file), **options)
        assert (tmp_path / "out.onnx").read_bytes() == whole(**options)[0]
        assert "Observing the original" not in count.stages

    def test_they_are_weighed_where_the_run_itself_has_no_target(
        self, tmp_path: Path, whole: Callable[..., tuple[bytes, int]]
    ) -> None:
        file, keep = tmp_path / "moments.npz", {"target": None, "keep": 0.5}
        run(tmp_path / "keep.onnx", storage=Storage(save_moments=file, state=tmp_path / "state"), **keep)
        assert (tmp_path / "keep.onnx").read_bytes() == whole(**keep)[0]
        run(tmp_path / "out.onnx", storage=Storage(from_moments=file))
        assert (tmp_path / "out.onnx").read_bytes() == whole()[0]

    def test_only_what_is_needed_later_is_kept(self, finished: Path) -> None:
        arrays, about = archive.read(finished / "moments.npz", "moments")
        assert len(about["views"]) == 2  # the second readers of stem and of the sum
        assert {name.split("/")[0] for name in arrays} == {"error", "curve", "order", "view"}

    def test_a_step_holds_new_weights_alone(self, finished: Path) -> None:
        errors = [archive.read(path, "a step")[1]["errors"] for path in sorted(finished.glob("step-*.npz"))]
        assert [len(found) for found in errors] == [1, 1, 2, 1]  # b is refitted together with a

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"seed": 1}, "another --seed"),
            ({"reconstruct": "scale"}, "another --reconstruct"),
            ({"scope": "inner"}, "another --scope"),
            ({"data": images(seed=2)}, "other data"),
            ({"model": small_models.plain()}, "another model"),
        ],
    )
    def test_those_of_another_run_are_refused(
        self, tmp_path: Path, finished: Path, change: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(StateError, match=rf"moments\.npz is of another run \(.*{told}.*--save-moments"):
            run(tmp_path / "out.onnx", storage=Storage(from_moments=finished / "moments.npz"), **change)

    @pytest.mark.parametrize("change", [{"reconstruct": "full"}, {"round_to": None}, {"drop_branches": True}], ids=str)
    def test_what_does_not_matter_to_them_may_differ(
        self, tmp_path: Path, finished: Path, change: dict[str, Any]
    ) -> None:
        run(tmp_path / "out.onnx", storage=Storage(from_moments=finished / "moments.npz"), **change)
        assert (tmp_path / "out.onnx").is_file()


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ("--from-moments nothing.npz", "--from-moments nothing.npz: there is no such file"),
            ("--from-moments net.onnx", "net.onnx can't be read as the moments that prune --save-moments wrote"),
            ("--save-moments net.onnx", "--save-moments and MODEL are the same file"),
            ("--save-moments out.onnx", "--save-moments and OUTPUT are the same file"),
            ("--save-moments text.txt", "text.txt is there and is no .npz file: it is not overwritten"),
            ("--save-moments no/m.npz", "no/m.npz can't be written: there is no folder no"),
            ("--state text.txt", "--state text.txt: text.txt is no folder"),
            ("--state s --finetune-per-layer 1", "--state and --finetune-per-layer don't go together"),
        ],
    )
    def test_what_can_be_said_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, told: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        onnx.save(small_models.plain(), "net.onnx")
        np.save("x.npy", images(8))
        Path("text.txt").write_text("text")
        command = ["prune", "net.onnx", "out.onnx", "--data", "x.npy", *arguments.split()]
        ended = CliRunner().invoke(cli.app, command)
        assert ended.exit_code == 2, ended.output
        assert ended.stderr.startswith("thinet-onnx: error: ")
        assert told in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        assert not Path("out.onnx").exists()

    def test_state_and_moments_in_one_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        onnx.save(small_models.plain(), "net.onnx")
        np.save("x.npy", images(16))
        command = ["prune", "net.onnx", "out.onnx", "--data", "x.npy", "--state", "s", "--save-moments", "m.npz"]
        assert CliRunner().invoke(cli.app, command).exit_code == 0
        first = Path("out.onnx").read_bytes()
        command = ["prune", "net.onnx", "again.onnx", "--data", "x.npy", "--from-moments", "m.npz"]
        assert CliRunner().invoke(cli.app, command).exit_code == 0
        assert Path("again.onnx").read_bytes() == first

"""What a user can get wrong, through the real command: code 2, one sentence that names the culprit, nothing written."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper
from PIL import Image
from refusals import listing, names, run, sentence
from small_models import Net
from typer.testing import CliRunner

from thinet_onnx import cli, graph
from thinet_onnx.errors import ModelError

SHAPE = (3, 8, 8)


def write_models(folder: Path) -> None:
    """Models that can be pruned, and models that can't."""
    onnx.save(small_models.plain(), folder / "net.onnx")
    whole = (folder / "net.onnx").read_bytes()
    for name, content in {
        "text": b"just some text\n",
        "page": b"<!DOCTYPE html>\n<html>404</html>\n",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "zeros": bytes(100),
        "empty": b"",
        "cut1": whole[:1],
        "cut20": whole[:20],
        "cut_half": whole[: len(whole) // 2],
        "cut_last": whole[:-1],
    }.items():
        (folder / f"{name}.onnx").write_bytes(content)
    for name in ("named.json", "named.textproto", "named.onnxtxt", "named.txt"):
        (folder / name).write_bytes(b"just some text\n")

    net = Net()
    x = net.node("Add", net.input("x", ("N", *SHAPE)), net.tensor(np.float32(1)))
    onnx.save(net.model(net.relu(x)), folder / "elementwise.onnx")
    net = Net()
    onnx.save(net.model(net.conv(net.input("x", ("N", *SHAPE)), 3, 8, name="only")), folder / "lonely.onnx")
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, "H", "W")), 3, 8))
    onnx.save(net.model(net.head(x, 8)), folder / "open.onnx")
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, "H", "W")), 3, 8))
    onnx.save(net.model(net.gemm(net.node("Flatten", x), 8 * 8 * 8, 4)), folder / "only_8x8.onnx")

    kinds = {
        "strings": ("StringNormalizer", helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])),
        "sequence": ("ConcatFromSequence", helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)),
    }
    for name, (op, value) in kinds.items():
        node = helper.make_node(op, ["x"], ["y"], **({"axis": 0} if name == "sequence" else {}))
        y = helper.make_tensor_value_info("y", TensorProto.STRING if name == "strings" else TensorProto.FLOAT, ["N"])
        made = helper.make_graph([node], name, [value], [y])
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(made, opset_imports=opset, ir_version=8), folder / f"{name}.onnx")
    model = small_models.plain()
    model.graph.input[0].type.tensor_type.elem_type = 99
    onnx.save(model, folder / "unknown_input.onnx")
    model = small_models.plain()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(model, folder / "bfloat16.onnx")
    model = small_models.plain()
    model.graph.initializer[0].data_type = 99
    onnx.save(model, folder / "unknown_weight.onnx")
    model = small_models.plain()
    model.graph.node[0].op_type = "Konv"
    onnx.save(model, folder / "unknown_operator.onnx")
    copy = small_models.plain()
    onnx.save(copy, folder / "external.onnx", save_as_external_data=True, location="gone.bin", size_threshold=100)
    (folder / "gone.bin").unlink()


def write_data(folder: Path) -> None:
    """Data that fits net.onnx, and data that doesn't."""
    x = np.random.default_rng(0).standard_normal((16, *SHAPE)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    np.savez(folder / "renamed.npz", picture=x)
    np.savez(folder / "flat.npz", x=x[:, 0])
    np.savez(folder / "two_channels.npz", x=x[:, :2])
    np.savez(folder / "large.npz", x=np.zeros((16, 3, 12, 12), np.float32))
    np.savez(folder / "labels.npz", x=x, labels=np.arange(15))
    holes = x.copy()
    holes[5, 1, 2, 3] = np.nan
    np.savez(folder / "nan.npz", x=holes)
    holes[5, 1, 2, 3] = np.inf
    np.save(folder / "inf.npy", holes)
    np.savez(folder / "words.npz", x=np.array(["a", "b"]))
    np.savez(folder / "one.npz", x=x[:1])
    np.savez(folder / "none.npz", x=x[:0])
    (folder / "half.npz").write_bytes((folder / "data.npz").read_bytes()[:2000])
    (folder / "notes.md").write_text("no data", encoding="utf-8")
    (folder / "calib.py").write_text(
        "import numpy\n"
        "def breaks():\n    raise ValueError('no\\nluck')\n"
        "def nothing():\n    return\n    yield\n"
        "def renamed():\n    yield {'picture': numpy.zeros((2, 3, 8, 8), 'f')}\n",
        encoding="utf-8",
    )
    (folder / "images").mkdir()
    (folder / "nothing").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "images" / f"{name}.png")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    write_models(folder)
    write_data(folder)
    (folder / "out").mkdir()
    return folder


@pytest.fixture
def here(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder to work in; nothing in it may have changed at the end."""
    monkeypatch.chdir(shelf)
    before = listing(shelf)
    yield shelf
    after = listing(shelf)
    assert after.keys() == before.keys()
    assert {name: value for name, value in after.items() if value != before[name] and Path(name).is_file()} == {}


BROKEN = [
    ("missing.onnx", "missing.onnx", "no such file"),
    ("out", "out", "is a folder"),
    (".", "folder"),
    ("text.onnx", "text.onnx", "not an ONNX file"),
    ("page.onnx", "page.onnx", "not an ONNX file"),
    ("pointer.onnx", "pointer.onnx", "not an ONNX file"),
    ("zeros.onnx", "zeros.onnx", "not an ONNX file"),
    ("empty.onnx", "empty.onnx", "not an ONNX model"),
    ("cut1.onnx", "cut1.onnx", "not an ONNX file or is truncated"),
    ("cut20.onnx", "cut20.onnx", "not an ONNX file or is truncated"),
    ("cut_half.onnx", "cut_half.onnx", "not an ONNX file or is truncated"),
    ("cut_last.onnx", "cut_last.onnx", "not an ONNX"),
    ("named.json", "named.json", "not an ONNX"),
    ("named.textproto", "named.textproto", "not an ONNX"),
    ("named.onnxtxt", "named.onnxtxt", "not an ONNX"),
    ("named.txt", "named.txt", "not an ONNX"),
    ("external.onnx", "external.onnx", "gone.bin"),
    ("strings.onnx", "'x'", "can't be fed"),
    ("sequence.onnx", "'x'", "no tensor"),
    ("bfloat16.onnx", "'x'", "can't be fed"),
    ("unknown_input.onnx", "x", "type"),
    ("unknown_weight.onnx", "type"),
    ("unknown_operator.onnx", "Konv"),
]


@pytest.mark.parametrize(
    ("model", *["words"]), [(model, words) for model, *words in BROKEN], ids=[b[0] for b in BROKEN]
)
@pytest.mark.parametrize(
    ("command", "others"),
    [
        ("prune", ["--random-data"]),
        ("inspect", []),
        ("bench", []),
        ("verify", ["--random-data", "--reference"]),  # what stands first may fail its checks instead, with code 1
    ],
)
def test_a_model_that_is_none(here: Path, command: str, others: list[str], model: str, words: list[str]) -> None:
    message = run(command, *(["net.onnx", *others, model] if command == "verify" else [model, *others]))
    assert names(message, *words), message


def test_truncations_are_noticed(tmp_path: Path) -> None:
    whole = small_models.plain().SerializeToString()
    file = tmp_path / "cut.onnx"
    passed = []
    for length in [*range(0, len(whole), 11), *range(len(whole) - 50, len(whole))]:
        file.write_bytes(whole[:length])
        try:
            graph.load(file)
        except ModelError as error:
            assert str(file) in str(error)
        else:
            passed.append(length)
    assert passed == []


DATA = [
    ("renamed.npz", "renamed.npz", "'x'", "'picture'"),
    ("flat.npz", "flat.npz", "'x'", "(16, 8, 8)", "(?,3,8,8)"),
    ("two_channels.npz", "two_channels.npz", "'x'", "(16, 2, 8, 8)"),
    ("large.npz", "large.npz", "'x'", "(16, 3, 12, 12)"),
    ("labels.npz", "labels.npz", "'labels'", "(15,)", "16"),
    ("nan.npz", "nan.npz", "'x'", "NaN", "row 5"),
    ("inf.npy", "inf.npy", "infinite", "row 5"),
    ("words.npz", "words.npz", "'x'", "dtype", "float32"),
    ("none.npz", "none.npz", "empty"),
    ("half.npz", "half.npz", "can't be read"),
    ("gone.npz", "gone.npz", "doesn't exist"),
    ("notes.md", "notes.md"),
    ("nothing", "nothing", "no image"),
    ("calib.py:absent", "calib.py", "no function 'absent'"),
    ("calib.py:breaks", "calib.py", "breaks()", "ValueError: no"),
    ("calib.py:nothing", "calib.py", "no feed"),
    ("calib.py:renamed", "calib.py", "'x'", "'picture'"),
    ("calib.py", "calib.py", "no function"),
    ("gone.py:feeds", "gone.py", "doesn't exist"),
]


@pytest.mark.parametrize(("source", *["words"]), [(source, words) for source, *words in DATA], ids=[d[0] for d in DATA])
@pytest.mark.parametrize("option", ["--data", "--test-data"])
def test_data_that_do_not_fit(here: Path, option: str, source: str, words: list[str]) -> None:
    other = [] if option == "--data" else ["--data", "data.npz"]
    message = run("prune", "net.onnx", "out/new.onnx", option, source, *other)
    assert names(message, *words), message


FINE = ["--data", "data.npz"]
REQUESTS: list[tuple[str, list[str], list[str]]] = [
    ("unreachable", ["net.onnx", *FINE, "--target", "macs=0.1%"], ["target", "51", "2,309", "--scope all"]),
    ("unreachable params", ["net.onnx", *FINE, "--target", "params=1%"], ["target", "narrowest"]),
    ("above the original", ["net.onnx", *FINE, "--target", "macs=2.0G"], ["target", "50,728"]),
    ("all of it", ["net.onnx", *FINE, "--target", "macs=100%"], ["--target", "'macs=100%'"]),
    ("bad target", ["net.onnx", *FINE, "--target", "half"], ["--target", "'half'", "macs=50%"]),
    ("bad kind", ["net.onnx", *FINE, "--target", "flops=50%"], ["--target", "'flops=50%'"]),
    ("both", ["net.onnx", *FINE, "--target", "macs=50%", "--keep", "0.5"], ["--target", "--keep"]),
    ("keep too much", ["net.onnx", *FINE, "--keep", "1.2"], ["--keep", "1.2"]),
    ("bad include", ["net.onnx", *FINE, "--include", "("], ["--include", "'('"]),
    ("bad exclude", ["net.onnx", *FINE, "--exclude", "[a"], ["--exclude", "'[a'"]),
    ("nothing included", ["net.onnx", *FINE, "--include", "nobody"], ["net.onnx", "--include"]),
    ("all excluded", ["net.onnx", *FINE, "--exclude", "."], ["net.onnx", "--exclude"]),
    ("no data", ["net.onnx"], ["--data", "--random-data"]),
    ("data twice", ["net.onnx", *FINE, "--random-data"], ["--data", "--random-data"]),
    ("bad samples", ["net.onnx", *FINE, "--samples", "0"], ["--samples", "0"]),
    ("one sample", ["net.onnx", "--data", "one.npz"], ["one.npz", "2"]),
    ("bad round", ["net.onnx", *FINE, "--round-to", "0"], ["--round-to", "0"]),
    ("unlabelled test", ["net.onnx", *FINE, "--test-data", "data.npz"], ["--test-data", "data.npz", "labels"]),
    ("mean of floats", ["net.onnx", *FINE, "--mean", "0.5"], ["--mean", "data.npz"]),
    ("only element-wise", ["elementwise.onnx", *FINE], ["elementwise.onnx", "nothing to prune"]),
    ("feeds the output", ["lonely.onnx", *FINE], ["lonely.onnx", "8", "output"]),
    ("output is a folder", ["net.onnx", "out", *FINE], ["out", "folder"]),
    ("output's folder missing", ["net.onnx", "nowhere/new.onnx", *FINE], ["nowhere/new.onnx", "no folder nowhere"]),
    ("output in a file", ["net.onnx", "data.npz/new.onnx", *FINE], ["data.npz/new.onnx", "can't be written"]),
    ("output is the model", ["net.onnx", "net.onnx", *FINE], ["OUTPUT", "MODEL", "net.onnx"]),
    ("json's folder missing", ["net.onnx", *FINE, "--json", "nowhere/r.json"], ["nowhere/r.json", "no folder nowhere"]),
    ("open sizes, random", ["open.onnx", "--random-data"], ["open.onnx", "'x'", "--shape x:1,3,224,224"]),
    ("open sizes, images", ["open.onnx", "--data", "images"], ["images", "'x'", "--shape", "--resize 224x224"]),
    ("no such input", ["net.onnx", *FINE, "--shape", "y:1,3,8,8"], ["--shape", "y", "x"]),
    ("other size", ["net.onnx", *FINE, "--shape", "x:1,3,9,8"], ["--shape", "x:1,3,9,8", "x:?,3,8,8"]),
    ("other rank", ["net.onnx", *FINE, "--shape", "x:1,3"], ["--shape", "x:1,3", "x:?,3,8,8"]),
    ("no shape", ["net.onnx", *FINE, "--shape", "x:a,b"], ["--shape", "'x:a,b'"]),
    ("inputs it can't run on", ["only_8x8.onnx", "--data", "large.npz"], ["ONNX Runtime", "can't run the model"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), [r[1:] for r in REQUESTS], ids=[r[0] for r in REQUESTS])
def test_a_request_that_can_not_be_met(here: Path, arguments: list[str], words: list[str]) -> None:
    message = run("prune", *arguments)
    assert names(message, *words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["open.onnx"], ["open.onnx", "'x'", "--shape x:1,3,224,224"]),
        (["net.onnx", "--shape", "y:1,3,8,8"], ["--shape", "y"]),
        (["net.onnx", "--shape", "x:1,4,8,8"], ["--shape", "x:1,4,8,8", "x:?,3,8,8"]),
        (["net.onnx", "--json", "nowhere/r.json"], ["nowhere/r.json"]),
        (["net.onnx", "--json", "out"], ["out", "folder"]),
    ],
)
def test_an_inspection_that_can_not_be_made(here: Path, arguments: list[str], words: list[str]) -> None:
    message = run("inspect", *arguments)
    assert names(message, *words), message


@pytest.mark.parametrize("option", ["--method", "--reconstruct", "--scope"])
def test_an_unknown_choice_is_a_usage_error_that_lists_the_choices(here: Path, option: str) -> None:
    outcome = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["prune", "net.onnx", *FINE, option, "best"])
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert names(
        outcome.stderr, option, "best", {"--method": "apoz", "--reconstruct": "scale", "--scope": "inner"}[option]
    )
    assert "Traceback" not in outcome.stderr


class TestWriting:
    @pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
    def test_a_folder_that_refuses_new_files(self, here: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
        """Root may write everywhere, so the refusal is made up."""

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr(graph.tempfile, "TemporaryFile", refuse)
        message = run("prune", "net.onnx", "out/new.onnx", *FINE)
        assert names(message, "out/new.onnx", "can't be written", os.strerror(reason))

    @pytest.mark.parametrize("old", [None, b"the file that was there"])
    def test_a_disk_that_is_full_leaves_nothing_behind(
        self, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
    ) -> None:
        """Half the file is written when the space ends; what was there before is still there."""
        output = tmp_path / "new.onnx"
        if old is not None:
            output.write_bytes(old)

        def save(model: onnx.ModelProto, path: str, **_: Any) -> None:
            Path(path).write_bytes(model.SerializeToString()[:500])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(graph.onnx, "save", save)
        message = run("prune", str(shelf / "net.onnx"), str(output), "--data", str(shelf / "data.npz"), "--keep", "0.5")
        assert names(message, "new.onnx", "can't be written", "No space left")
        assert [file.name for file in tmp_path.iterdir()] == ([] if old is None else ["new.onnx"])
        assert old is None or output.read_bytes() == old

    def test_an_error_leaves_an_older_output_as_it_was(self, shelf: Path, tmp_path: Path) -> None:
        output = tmp_path / "net_pruned.onnx"
        output.write_bytes(b"older")
        run("prune", str(shelf / "net.onnx"), str(output), "--data", str(shelf / "nan.npz"))
        assert output.read_bytes() == b"older"
        assert [file.name for file in tmp_path.iterdir()] == ["net_pruned.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "missing.onnx", "--data", "data.npz"], ["missing.onnx"]),
        (["prune", "net.onnx", "--data", "nan.npz"], ["nan.npz", "NaN"]),
        (["prune", "net.onnx", "--data", "data.npz", "--target", "macs=0.1%"], ["2,309"]),
    ],
)
def test_in_a_process_of_its_own(here: Path, arguments: list[str], words: list[str]) -> None:
    """Nothing else reaches the screen either: no warning of a library, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "thinet_onnx", *arguments], cwd=here, capture_output=True, text=True, check=False
    )
    assert names(sentence(done.returncode, done.stdout, done.stderr), *words)


@pytest.mark.parametrize("ir_version", [1, 8])
def test_a_file_without_operator_sets(tmp_path: Path, ir_version: int) -> None:
    """Before IR version 3 that was the rule, and such a file has to be right as operator set 7; later it is a defect."""
    model = small_models.plain()
    model.ir_version = ir_version
    model.graph.node[0].op_type = "Hardtanh"
    del model.opset_import[:]
    file = tmp_path / "old.onnx"
    file.write_bytes(model.SerializeToString())
    message = run("inspect", str(file))
    assert names(message, "old.onnx", "operator set", "again"), message

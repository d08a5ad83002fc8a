"""What a report shows of held-out samples: pictures as they were, best classes, boxes, outputs that are pictures."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from PIL import Image
from small_models import Net

import thinet_onnx
from thinet_onnx import data, examples, images, pictures
from thinet_onnx.data import InputSpec, Preprocess
from thinet_onnx.errors import OptionError
from thinet_onnx.examples import Held
from thinet_onnx.options import Show
from thinet_onnx.result import Example, Examples, Fidelity, Picture

Array = np.ndarray[Any, Any]

FLOAT = np.dtype(np.float32)
GREY = InputSpec("x", (None, 1, 32, 32), FLOAT)
COLOUR = InputSpec("x", (None, 3, 32, 32), FLOAT)


def decoded(picture: Picture) -> Array:
    image = Image.open(io.BytesIO(base64.b64decode(picture.data)))
    assert image.format is not None
    assert image.format.lower() == picture.kind
    assert image.size == (picture.width, picture.height)
    return np.asarray(image)


def collected(
    outputs: dict[str, tuple[Array, Array]], inputs: Array, spec: InputSpec = COLOUR, show: Show | None = None,
    preprocess: Preprocess | None = None, labels: Array | None = None,
) -> Examples:  # fmt: skip
    """Examples of networks with these outputs, (before, after), to all inputs in one batch."""
    source = data.from_arrays(inputs, [spec], preprocess or Preprocess(), labels=labels)
    before, after = ([pair[side] for pair in outputs.values()] for side in (0, 1))
    held = Held(source, list(range(len(source))), len(source), list(outputs), [before], [after])
    near = [
        Fidelity(name, 1.0, 0.0, None, len(a), tuple(np.abs(a - b).reshape(len(a), -1).sum(1).tolist()))
        for name, (a, b) in outputs.items()
        if a.shape == b.shape
    ]
    return examples.collect(held, [spec], preprocess or Preprocess(), near, show or Show(), seed=0)


class TestInputs:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        "chosen",
        [Preprocess(), Preprocess(mean=(0.4,), std=(0.3,)), Preprocess(mean=(127.0,), std=(128.0,), scale=1.0)],
    )
    def test_the_picture_is_the_one_that_went_in(self, layout: Any, channels: int, chosen: Preprocess) -> None:
        shape = (None, channels, 20, 30) if layout == "nchw" else (None, 20, 30, channels)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 30, channels)).astype(np.uint8)
        pixels[0, 0, :2] = [[0], [255]]
        image = images.ImageInput.resolve(InputSpec("x", shape, FLOAT), chosen)
        shown = pictures.of_input(image.tensor(pixels)[0], image)
        assert shown is not None
        assert shown.shown == ""
        assert np.array_equal(decoded(shown).reshape(20, 30, channels), pixels[0])

    def test_a_value_for_each_channel(self) -> None:
        chosen = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        image = images.ImageInput.resolve(COLOUR, chosen)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
        shown = pictures.of_input(image.tensor(pixels)[0], image)
        assert shown is not None
        assert np.array_equal(decoded(shown), pixels[0])

    def test_pixels_that_go_in_unchanged(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        image = images.ImageInput.resolve(InputSpec("x", (1, 8, 8, 3), np.dtype(np.uint8)), Preprocess())
        shown = pictures.of_input(pixels, image)
        assert shown is not None
        assert np.array_equal(decoded(shown), pixels)

    def test_values_that_are_no_pixels_are_stretched_and_it_is_said(self) -> None:
        values = np.linspace(-3, 5, 64, dtype=np.float32).reshape(1, 8, 8)
        shown = pictures.of_input(values, images.ImageInput.resolve(GREY, Preprocess()))
        assert shown is not None
        assert shown.shown == "black is -3, white 5"
        assert (decoded(shown)[0, 0], decoded(shown)[-1, -1]) == (0, 255)

    def test_large_pictures_become_small(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3)).astype(np.uint8)
        shown = pictures.encode(noise)
        assert (shown.kind, shown.width, shown.height) == ("jpeg", 224, 149)
        assert len(shown.data) < 60_000
        decoded(shown)

    def test_numbers_that_are_none_are_drawn_all_the_same(self) -> None:
        values = np.full((1, 8, 8), np.nan, np.float32)
        shown = pictures.of_input(values, images.ImageInput.resolve(GREY, Preprocess(mean=(0.5,))))
        assert shown is not None
        decoded(shown)


class TestOutputs:
    def test_a_picture_and_its_difference(self) -> None:
        before = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)
        after = before.copy()
        after[:, 10, 20] += 0.1
        pair = pictures.pair("out", before, after, "nchw", (32, 32))
        assert pair is not None
        assert np.array_equal(decoded(pair.before), np.round(before.transpose(1, 2, 0) * 255).astype(np.uint8))
        assert pair.difference.shown == "black: none, white: 10% of the range"
        assert decoded(pair.difference)[10, 20] == 255
        assert (decoded(pair.difference) > 0).sum() == 1

    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_a_segmentation(self, layout: Any) -> None:
        scores = np.zeros((5, 32, 32), np.float32)
        scores[1, :, :16] = scores[4, :, 16:] = 1
        other = scores.copy()
        other[2, 8:16, :16] = 2  # 128 of 1024 places
        turned = [a if layout == "nchw" else a.transpose(1, 2, 0) for a in (scores, other)]
        pair = pictures.pair("out", turned[0], turned[1], layout, (32, 32))
        assert pair is not None
        assert pair.before.shown == "the largest of 5 channels"
        assert pair.difference.shown == "red: 12.5% of the places differ"
        colours = {tuple(colour) for colour in decoded(pair.before).reshape(-1, 3).tolist()}
        assert len(colours) == 2
        assert len({tuple(colour) for colour in decoded(pair.after).reshape(-1, 3).tolist()}) == 3
        assert decoded(pair.before)[0, 0].tolist() == decoded(pair.after)[0, 0].tolist()

    def test_a_map_of_whole_numbers(self) -> None:
        numbers = np.arange(32 * 32).reshape(32, 32) % 7
        pair = pictures.pair("out", numbers, numbers, "nchw", (32, 32))
        assert pair is not None
        assert pair.difference.shown == "red: 0.0% of the places differ"

    @pytest.mark.parametrize(
        ("shape", "size"),
        [
            ((1, 8, 8), (32, 32)),
            ((3, 32, 64), (32, 32)),
            ((6, 32, 32), None),
            ((10,), (32, 32)),
            ((64, 16, 16), (224, 224)),
        ],
    )
    def test_what_is_no_picture(self, shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
        values = np.zeros(shape, np.float32)
        assert pictures.pair("out", values, values, "nchw", size) is None

    @pytest.mark.parametrize(
        ("low", "high", "span"),
        [(0, 1, (0, 1)), (-0.05, 1.1, (0, 1)), (-1, 0.9, (-1, 1)), (0, 255, (0, 255)), (-7, 260, (0, 255)), (-9, 9, (-9, 9)),
         (0.4, 0.41, (0.4, 0.41)), (-2, 30, (0, 255))],
    )  # fmt: skip
    def test_what_black_and_white_stand_for(self, low: float, high: float, span: tuple[float, float]) -> None:
        assert pictures.span(np.array([low, high])) == pytest.approx(span)


class TestCollect:
    def test_the_worst_come_first_and_the_others_at_random(self) -> None:
        before = np.eye(5)[np.arange(30) % 5]
        after = before.copy()
        after[[7, 19], 0] += [0.5, 0.9]
        found = collected({"scores": (before, after)}, np.zeros((30, 3, 32, 32), np.float32))
        assert [e.sample for e in found.samples[:2]] == ["sample 19", "sample 7"]
        assert [e.why for e in found.samples] == ["largest error"] * 2 + ["at random"] * 4
        assert [e.error for e in found.samples] == pytest.approx([0.9, 0.5, 0, 0, 0, 0])
        assert len({e.sample for e in found.samples}) == 6
        assert found.remarks == ()

    def test_no_more_than_there_are(self) -> None:
        scores = np.eye(5)[:2]
        found = collected({"scores": (scores, scores)}, np.zeros((2, 3, 32, 32), np.float32))
        assert len(found.samples) == 2

    def test_best_classes_with_names(self) -> None:
        logits = np.array([[0.0, 3.0, 1.0, 2.0, -1.0, 0.5]])
        other = logits[:, ::-1].copy()
        show = Show(classes=("zero", "one"))
        (found,) = collected(
            {"logits": (logits, other)}, np.zeros((1, 3, 32, 32), np.float32), show=show, labels=np.array([1])
        ).samples
        assert [(s.index, s.name) for s in found.scores_before] == [
            (1, "one"),
            (3, None),
            (2, None),
            (5, None),
            (0, "zero"),
        ]
        assert found.scores_after[0].index == 4
        assert found.scores_before[0].value == 3.0
        assert found.scores_before[0].share == pytest.approx(np.exp(3) / np.exp(logits).sum())
        assert found.label == "one"

    def test_probabilities_are_taken_as_they_are(self) -> None:
        chances = np.array([[0.7, 0.2, 0.1]])
        (found,) = collected({"p": (chances, chances)}, np.zeros((1, 3, 32, 32), np.float32)).samples
        assert [s.share for s in found.scores_after] == pytest.approx([0.7, 0.2, 0.1])

    def test_boxes(self) -> None:
        corners = np.array([[[0.1, 0.2, 0.3, 0.6], [0.5, 0.5, 0.9, 1.2]]], np.float32)
        scores = np.array([[0.9, 0.5]], np.float32)
        outputs = {"boxes": (corners, corners), "scores": (scores, scores * 0.5)}
        (found,) = collected(outputs, np.zeros((1, 3, 32, 32), np.float32), show=Show(boxes="xyxy")).samples
        assert found.boxes_before is not None
        assert found.boxes_after is not None
        assert [box.score for box in found.boxes_before] == pytest.approx([0.9, 0.5])
        assert found.boxes_before[1].bottom == 1.0
        assert [box.score for box in found.boxes_after] == pytest.approx([0.45])
        assert found.scores_before == ()

    def test_outputs_that_are_no_boxes_are_named_in_one_line(self) -> None:
        scores = np.zeros((4, 10), np.float32)
        found = collected({"logits": (scores, scores)}, np.zeros((4, 3, 32, 32), np.float32), show=Show(boxes="xyxy"))
        assert found.remarks == ("--task detect: the outputs (logits (1, 10)) are no boxes with scores.",)
        assert all(e.boxes_before is None and e.picture is not None for e in found.samples)

    def test_boxes_need_a_picture(self) -> None:
        spec = InputSpec("x", (None, 6), FLOAT)
        scores = np.zeros((4, 10), np.float32)
        found = collected({"y": (scores, scores)}, np.zeros((4, 6), np.float32), spec, Show(boxes="xyxy"))
        assert found.remarks == ("--task detect: no input is a picture, so there is nothing to draw boxes on.",)

    def test_inputs_that_are_no_pictures(self) -> None:
        spec = InputSpec("x", (None, 7, 9, 9), FLOAT)
        scores = np.eye(3)
        (first, *_) = collected({"y": (scores, scores)}, np.zeros((3, 7, 9, 9), np.float32), spec).samples
        assert first.picture is None
        assert first.scores_before

    def test_too_many_pictures_are_left_out_and_it_is_said(self) -> None:
        noise = np.random.default_rng(0).random((8, 3, 224, 224)).astype(np.float32)
        spec = InputSpec("x", (None, 3, 224, 224), FLOAT)
        found = collected({"a": (noise, noise + 0.1), "b": (noise, noise - 0.1)}, noise, spec)
        assert found.remarks == ("Some pictures were left out to keep the report small.",)
        assert sum(map(size, found.samples)) <= 600_000
        assert found.samples[0].picture is not None
        assert found.samples[-1].picture is None


def size(example: Example) -> int:
    parts = [part for pair in example.pictures for part in (pair.before, pair.after, pair.difference)]
    return sum(len(part.data) for part in (*parts, *((example.picture,) if example.picture else ())))


class TestRuns:
    def test_names_of_files_and_labels(self, tmp_path: Path) -> None:
        for place in range(24):
            folder = tmp_path / ("cat" if place % 2 else "dog")
            folder.mkdir(exist_ok=True)
            pixels = np.random.default_rng(place).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{place}.png")
        report = thinet_onnx.prune(small_models.plain(), tmp_path, keep=0.5, examples=4).report
        assert len(report.held) == 3
        assert all(name.split("/")[0] in ("cat", "dog") for name in report.held)
        assert len(report.examples.samples) == 3
        for example in report.examples.samples:
            assert example.label == ("class 0" if example.sample.startswith("cat") else "class 1")
            assert example.picture is not None
            pixels = np.asarray(Image.open(tmp_path / example.sample))
            assert np.array_equal(decoded(example.picture), pixels)
            assert len(example.scores_before) == len(example.scores_after) == 5

    def test_a_network_whose_output_is_a_picture(self) -> None:
        net = Net()
        x = net.relu(net.conv(net.input("x", ("N", 3, 16, 16)), 3, 8))
        model = net.model(net.conv(net.relu(net.conv(x, 8, 8)), 8, 3))
        pixels = np.random.default_rng(0).random((24, 3, 16, 16)).astype(np.float32)
        report = thinet_onnx.prune(model, pixels, keep=0.5, examples=2).report
        for example in report.examples.samples:
            (pair,) = example.pictures
            assert (pair.before.width, pair.after.height) == (16, 16)
            assert example.scores_before == ()

    def test_nothing_is_kept_unasked_or_of_noise(self) -> None:
        pixels = np.random.default_rng(0).random((24, 3, 8, 8)).astype(np.float32)
        assert thinet_onnx.prune(small_models.plain(), pixels, keep=0.5).report.examples.samples == ()
        noise = thinet_onnx.prune(small_models.plain(), None, keep=0.5, random_data=True, examples=3).report
        assert noise.examples.samples == ()

    def test_classes_from_python(self) -> None:
        pixels = np.random.default_rng(0).random((24, 3, 8, 8)).astype(np.float32)
        report = thinet_onnx.prune(small_models.plain(), pixels, keep=0.5, examples=1, classes=list("abcde")).report
        assert {score.name for score in report.examples.samples[0].scores_before} == set("abcde")


class TestShow:
    @pytest.mark.parametrize(
        ("task", "boxes"), [("auto", None), ("detect", "xyxy"), ("detect:cxcywh", "cxcywh"), ("detect:yxyx", "yxyx")]
    )
    def test_tasks(self, task: str, boxes: str | None) -> None:
        assert Show.parse(task, None).boxes == boxes

    @pytest.mark.parametrize("task", ["segment", "detect:", "detect:wh", "auto:xyxy", ""])
    def test_unknown_tasks(self, task: str) -> None:
        with pytest.raises(OptionError, match="--task"):
            Show.parse(task, None)

    def test_names_of_classes(self, tmp_path: Path) -> None:
        path = tmp_path / "classes.txt"
        path.write_bytes("\ufeffcat\r\n\r\n Zürich \r\n\r\n".encode())
        show = Show.parse("auto", path)
        assert show.classes == ("cat", "", "Zürich")
        assert (show.name(0), show.name(1), show.name(3), show.name(-1)) == ("cat", None, None, None)

    @pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
    def test_files_that_are_no_list(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(OptionError, match="name"):
            Show.parse("auto", tmp_path / "classes.txt")
        with pytest.raises(OptionError, match="No such file"):
            Show.parse("auto", tmp_path / "missing.txt")

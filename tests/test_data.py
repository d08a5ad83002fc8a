"""Reading calibration data: numbers are compared with ones computed here by hand, messages must name what is wrong."""

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thinet_onnx import arrays
from thinet_onnx.data import InputSpec, Preprocess, from_arrays, open_source, random_source, split
from thinet_onnx.errors import DataError, OptionError
from thinet_onnx.stored import Stored

FLOAT = np.dtype(np.float32)
RGB = [InputSpec("x", (None, 3, 8, 6), FLOAT)]
GREY = [InputSpec("x", (1, 1, 8, 6), FLOAT)]
TAIL = [InputSpec("x", (None, 8, 6, 3), FLOAT)]
VECTOR = [InputSpec("v", (None, 5), FLOAT)]
TWO = [InputSpec("x", (None, 3, 8, 6), FLOAT), InputSpec("v", (None, 5), FLOAT)]


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def script(folder: Path, body: str, name: str = "calib.py") -> str:
    (folder / name).write_text("import numpy as np\n" + body)
    return str(folder / name)


def fails(*words: str, error: type[Exception] = DataError) -> Any:
    """Expect `error` with a message of one line that holds every word."""
    pattern = "".join(f"(?=.*{re.escape(word)})" for word in words) + r"[^\n]+\Z"
    return pytest.raises(error, match=rf"\A{pattern}")


class TestFolder:
    def test_pixels_are_scaled_shifted_and_divided_per_channel(self, tmp_path):
        image = pixels(8, 6, 3)
        save(tmp_path / "a.png", image)
        chosen = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
        got = open_source(tmp_path, RGB, chosen).batch([0])["x"]
        assert got.shape == (1, 3, 8, 6) and got.dtype == np.float32 and got.flags.c_contiguous
        for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
            np.testing.assert_allclose(got[0, channel], (image[:, :, channel] / 255 - mean) / std, rtol=1e-5, atol=1e-6)

    def test_scale_comes_before_mean_and_one_value_serves_all_channels(self, tmp_path):
        image = pixels(8, 6, 3)
        save(tmp_path / "a.png", image)
        got = open_source(tmp_path, TAIL, Preprocess(mean=(127.0,), std=(2.0,), scale=1.0)).batch([0])["x"]
        np.testing.assert_array_equal(got[0], (image.astype(np.float32) - 127) / 2)

    def test_default_is_division_by_255(self, tmp_path):
        save(tmp_path / "a.png", np.full((8, 6, 3), 255, np.uint8))
        np.testing.assert_allclose(open_source(tmp_path, RGB).batch([0])["x"], 1.0, rtol=1e-6)

    def test_layout_follows_the_model(self, tmp_path):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        head = open_source(tmp_path, RGB).batch([0])["x"]
        tail = open_source(tmp_path, TAIL).batch([0])["x"]
        assert tail.shape == (1, 8, 6, 3)
        np.testing.assert_array_equal(head, tail.transpose(0, 3, 1, 2))

    def test_layout_option_overrides_the_shape(self, tmp_path):
        save(tmp_path / "a.png", pixels(3, 4, 3))
        spec = [InputSpec("x", (1, 3, 4, 3), FLOAT)]
        image = np.asarray(Image.open(tmp_path / "a.png"), np.float32) / 255
        got = open_source(tmp_path, spec, Preprocess(layout="nhwc")).batch([0])["x"]
        np.testing.assert_allclose(got[0], image, rtol=1e-6)

    def test_resize_is_pillows_bilinear_to_the_models_size(self, tmp_path):
        image = pixels(9, 7, 3)
        save(tmp_path / "a.png", image)
        wanted = np.asarray(Image.fromarray(image).resize((6, 8), Image.Resampling.BILINEAR)) / np.float32(255)
        np.testing.assert_allclose(open_source(tmp_path, TAIL).batch([0])["x"][0], wanted, rtol=1e-6)

    def test_resize_option_sets_a_dynamic_size(self, tmp_path):
        save(tmp_path / "a.png", pixels(9, 7, 3))
        spec = [InputSpec("x", (None, 3, None, None), FLOAT)]
        assert open_source(tmp_path, spec, Preprocess(resize=(2, 5))).batch([0])["x"].shape == (1, 3, 2, 5)

    def test_grey_input_takes_luminance(self, tmp_path):
        image = pixels(8, 6, 3)
        save(tmp_path / "a.png", image)
        got = open_source(tmp_path, GREY, Preprocess(scale=1.0)).batch([0])["x"]
        np.testing.assert_allclose(got[0, 0], image @ [0.299, 0.587, 0.114], atol=1)

    def test_grey_file_fills_three_channels(self, tmp_path):
        image = pixels(8, 6)
        save(tmp_path / "a.png", image)
        got = open_source(tmp_path, RGB, Preprocess(scale=1.0)).batch([0])["x"]
        np.testing.assert_array_equal(got[0], np.stack([image] * 3))

    def test_palette_with_transparency_is_read_without_a_warning(self, tmp_path):
        image = Image.fromarray(pixels(8, 6, 3)).quantize(8)
        image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
        got = open_source(tmp_path, TAIL, Preprocess(scale=1.0)).batch([0])["x"]
        np.testing.assert_array_equal(got[0], np.asarray(image.convert("RGB")))

    def test_exif_orientation_turns_the_image(self, tmp_path):
        stored = pixels(6, 8, 3)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        save(tmp_path / "a.png", stored, exif=exif)
        got = open_source(tmp_path, TAIL, Preprocess(scale=1.0)).batch([0])["x"]
        np.testing.assert_array_equal(got[0], np.rot90(stored, -1))

    def test_uint8_input_takes_pixels_as_they_are(self, tmp_path):
        image = pixels(8, 6, 3)
        save(tmp_path / "a.png", image)
        spec = [InputSpec("x", (1, 8, 6, 3), np.dtype(np.uint8))]
        got = open_source(tmp_path, spec).batch([0])["x"]
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got[0], image)
        with fails("'x'", "uint8", "--mean", error=OptionError):
            open_source(tmp_path, spec, Preprocess(mean=(0.5,)))

    def test_float16_input_gets_the_rounded_float32_result(self, tmp_path):
        image = pixels(8, 6, 3)
        save(tmp_path / "a.png", image)
        spec = [InputSpec("x", (1, 8, 6, 3), np.dtype(np.float16))]
        got = open_source(tmp_path, spec, Preprocess(mean=(0.4,), std=(0.2,))).batch([0])["x"]
        assert got.dtype == np.float16
        np.testing.assert_allclose(got[0], (image / 255 - 0.4) / 0.2, rtol=6e-4, atol=1e-5)

    def test_files_are_found_below_and_sorted_by_path(self, tmp_path):
        for value, name in enumerate(["b/z.png", "a.JPG", "b/c/d.bmp", "b/.hidden.png", ".cache/e.png"]):
            save(tmp_path / name, np.full((8, 6, 3), 10 * value, np.uint8))
        (tmp_path / "notes.txt").write_text("no image")
        source = open_source(tmp_path, RGB, Preprocess(scale=1.0))
        assert len(source) == 3 and source.labels is None and source.stackable
        assert source.description == f"3 images of folder {tmp_path}"
        assert source.batch([0, 1, 2])["x"][:, 0, 0, 0].tolist() == [10, 20, 0]
        assert source.batch([2, 0])["x"][:, 0, 0, 0].tolist() == [0, 10]

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "ppm", "tif", "tiff"])
    def test_every_format_is_read(self, tmp_path, suffix):
        save(tmp_path / f"a.{suffix}", np.full((8, 6, 3), 200, np.uint8))
        np.testing.assert_allclose(open_source(tmp_path, RGB, Preprocess(scale=1.0)).batch([0])["x"], 200, atol=2)

    def test_subfolders_are_labels(self, tmp_path):
        for name in ["dog/1.png", "cat/deep/2.png", "cat/1.png", "emu/1.png"]:
            save(tmp_path / name, pixels(8, 6, 3))
        labels = open_source(tmp_path, RGB).labels
        assert labels is not None and labels.dtype == np.int64 and labels.tolist() == [0, 0, 1, 2]

    @pytest.mark.parametrize("names", [["cat/1.png", "cat/2.png"], ["cat/1.png", "dog/1.png", "3.png"]])
    def test_no_labels_from_one_subfolder_or_files_beside_them(self, tmp_path, names):
        for name in names:
            save(tmp_path / name, pixels(8, 6, 3))
        assert open_source(tmp_path, RGB).labels is None

    def test_images_are_decoded_when_asked_for(self, tmp_path):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        (tmp_path / "b.png").write_bytes(b"no image")
        source = open_source(tmp_path, RGB)
        source.batch([0])
        with fails("b.png", "unknown format"):
            source.batch([1])

    def test_truncated_image_is_named(self, tmp_path):
        save(tmp_path / "a.jpg", pixels(64, 64, 3))
        whole = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
        with fails("a.jpg", "truncated"):
            open_source(tmp_path, RGB).batch([0])

    def test_sixteen_bit_image_is_refused(self, tmp_path):
        save(tmp_path / "deep.png", np.full((8, 6), 40000, np.uint16))
        with fails("deep.png", "8 bits"):
            open_source(tmp_path, GREY).batch([0])

    def test_images_are_decoded_once_as_long_as_there_is_room(self, tmp_path, monkeypatch):
        rng = np.random.default_rng(0)
        for number in range(3):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
        monkeypatch.setattr("thinet_onnx.data._KEPT_BYTES", 2 * 8 * 8 * 3)
        source = open_source(tmp_path, [InputSpec("x", (None, 3, 8, 8), np.dtype(np.float32))])
        first = source.batch([0, 1, 2])["x"]
        for number in range(2):
            (tmp_path / f"{number}.png").unlink()
        assert np.array_equal(source.batch([1, 0, 2])["x"], first[[1, 0, 2]])
        (tmp_path / "2.png").unlink()
        with pytest.raises(DataError, match=r"2\.png can't be read"):
            source.batch([2])

    def test_empty_folder(self, tmp_path):
        (tmp_path / "a.txt").write_text("")
        with fails(str(tmp_path), "holds no image", ".jpg"):
            open_source(tmp_path, RGB)

    def test_dynamic_size_needs_an_option(self, tmp_path):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        with fails(str(tmp_path), "'x'", "--shape", "--resize"):
            open_source(tmp_path, [InputSpec("x", (None, 3, None, None), FLOAT)])

    def test_resize_must_not_contradict_the_model(self, tmp_path):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        with fails("--resize 8,8", "'x'", "8,6", error=OptionError):
            open_source(tmp_path, RGB, Preprocess(resize=(8, 8)))

    @pytest.mark.parametrize("inputs", [TWO, VECTOR, [InputSpec("x", (None, 3, 8, 6), np.dtype(np.int64))]])
    def test_images_feed_one_input_of_rank_4(self, tmp_path, inputs):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        with fails(str(tmp_path), "rank 4", ".npz", repr(inputs[-1].name)):
            open_source(tmp_path, inputs)

    def test_input_without_image_channels(self, tmp_path):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        spec = [InputSpec("x", (None, 12, 8, 6), FLOAT)]
        with fails("'x'", "--layout"):
            open_source(tmp_path, spec)
        with fails("'x'", "channels", "--shape"):
            open_source(tmp_path, spec, Preprocess(layout="nchw"))

    def test_mean_must_fit_the_channels(self, tmp_path):
        save(tmp_path / "a.png", pixels(8, 6, 3))
        with fails("--mean 0.1,0.2", "'x'", "3 channels", error=OptionError):
            open_source(tmp_path, RGB, Preprocess(mean=(0.1, 0.2)))
        with fails("--std 1.0,1.0,1.0", "'x'", "1 channels", error=OptionError):
            open_source(tmp_path, GREY, Preprocess(std=(1.0, 1.0, 1.0)))


class TestPreprocess:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"std": (0.5, 0.0, 0.5)}, "--std 0.5,0.0,0.5"),
            ({"scale": 0.0}, "--scale 0.0"),
            ({"mean": (float("nan"),)}, "--mean nan"),
            ({"layout": "hwc"}, "'hwc'"),
            ({"resize": (0, 4)}, "--resize 0,4"),
        ],
    )
    def test_unusable_values(self, options, word):
        with fails(word, error=OptionError):
            Preprocess(**options)


class TestImageArrays:
    @pytest.mark.parametrize("spec", [RGB, TAIL])
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_layout_of_the_array_is_found(self, spec, layout):
        images = pixels(5, 8, 6, 3)
        given = images if layout == "nhwc" else images.transpose(0, 3, 1, 2)
        wanted = images / np.float32(255)
        wanted = wanted if spec is TAIL else wanted.transpose(0, 3, 1, 2)
        got = from_arrays({"x": given}, spec).batch([4, 1])["x"]
        assert got.flags.c_contiguous and got.dtype == np.float32
        np.testing.assert_allclose(got, wanted[[4, 1]], rtol=1e-6)

    def test_grey_without_a_channel_axis(self):
        images = pixels(5, 8, 6)
        got = from_arrays(images, GREY, Preprocess(scale=1.0)).batch([2])["x"]
        np.testing.assert_array_equal(got, images[2:3, np.newaxis])

    def test_ambiguous_layout_goes_by_the_size(self):
        images = pixels(2, 3, 5, 3)
        spec = [InputSpec("x", (None, 3, 3, 5), FLOAT)]
        got = from_arrays({"x": images}, spec, Preprocess(scale=1.0)).batch([0])["x"]
        np.testing.assert_array_equal(got[0], images[0].transpose(2, 0, 1))

    def test_resized_only_if_the_size_differs(self):
        images = pixels(2, 8, 9, 3)
        got = from_arrays({"x": images}, TAIL, Preprocess(scale=1.0)).batch([1])["x"]
        wanted = Image.fromarray(images[1]).resize((6, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(got[0], np.asarray(wanted))

    def test_dynamic_size_keeps_the_arrays_own(self):
        images = pixels(2, 8, 9, 3)
        spec = [InputSpec("x", (None, 3, None, None), FLOAT)]
        got = from_arrays({"x": images}, spec, Preprocess(scale=1.0)).batch([1])["x"]
        np.testing.assert_array_equal(got[0], images[1].transpose(2, 0, 1))
        assert from_arrays({"x": images}, spec, Preprocess(resize=(4, 4))).batch([1])["x"].shape == (1, 3, 4, 4)

    def test_half_dynamic_size_is_checked(self):
        spec = [InputSpec("x", (None, 3, 4, None), FLOAT)]
        assert from_arrays({"x": pixels(2, 4, 9, 3)}, spec).batch([1])["x"].shape == (1, 3, 4, 9)
        with fails("'x'", "(2, 5, 9, 3)", "?,3,4,?"):
            from_arrays({"x": pixels(2, 5, 9, 3)}, spec)

    @pytest.mark.parametrize("shape", [(5, 8, 6, 2), (5, 8, 6), (5, 24), (8, 6, 3)])
    def test_no_images_for_the_input(self, shape):
        with fails("'x'", str(shape), "3 channels"):
            from_arrays({"x": pixels(*shape)}, RGB)

    def test_a_single_image_is_not_taken_for_grey_ones(self):
        with fails("'x'", "(28, 28, 1)"):
            from_arrays({"x": pixels(28, 28, 1)}, GREY)

    def test_channels_beyond_pictures_need_the_layout(self):
        spec = [InputSpec("x", (None, 12, 8, 6), FLOAT)]
        with fails("'x'", "--layout"):
            from_arrays({"x": pixels(2, 12, 8, 6)}, spec)
        images = pixels(2, 12, 9, 6)
        got = from_arrays({"x": images}, spec, Preprocess(layout="nchw", scale=1.0)).batch([0])["x"]
        wanted = [Image.fromarray(plane).resize((6, 8), Image.Resampling.BILINEAR) for plane in images[0]]
        np.testing.assert_array_equal(got[0], np.stack([np.asarray(plane) for plane in wanted]))

    def test_dynamic_channels_take_means_of_the_arrays_channels(self):
        spec = [InputSpec("x", (None, None, 8, 6), FLOAT)]
        images = pixels(2, 8, 6, 3)
        chosen = Preprocess(mean=(1.0, 2.0, 3.0), scale=1.0, layout="nchw")
        got = from_arrays({"x": images}, spec, chosen).batch([0])["x"]
        np.testing.assert_array_equal(got[0], images[0].transpose(2, 0, 1) - np.float32([[[1]], [[2]], [[3]]]))
        with fails("--mean", "3 channels", error=OptionError):
            from_arrays({"x": images}, spec, Preprocess(mean=(1.0, 2.0), layout="nchw"))

    def test_arrays_stay_uint8_and_unshared_until_the_batch(self):
        images = pixels(3, 8, 6, 3)
        before = images.copy()
        source = from_arrays({"x": images}, RGB)
        source.batch([0])["x"][:] = 7
        np.testing.assert_array_equal(images, before)

    def test_uint8_for_another_rank_is_a_number(self):
        np.testing.assert_array_equal(from_arrays(pixels(3, 5), VECTOR).batch([1])["v"], pixels(3, 5)[1:2])


class TestPlainArrays:
    def test_float_arrays_are_taken_as_they_are(self):
        values = floats(6, 3, 8, 6)
        source = from_arrays({"x": values}, RGB)
        assert source.description == "6 rows of the data given" and source.stackable
        np.testing.assert_array_equal(source.batch([3, 0, 5])["x"], values[[3, 0, 5]])

    @pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (2.0,)}, {"scale": 1.0}, {"resize": (8, 6)}])
    def test_preprocessing_needs_images(self, options):
        with fails("uint8 images", "the data given", error=OptionError):
            from_arrays({"x": floats(2, 3, 8, 6)}, RGB, Preprocess(**options))

    @pytest.mark.parametrize(
        ("have", "want"),
        [("f8", "f4"), ("f8", "f2"), ("f2", "f4"), ("i8", "i4"), ("i4", "i8"), ("u1", "i8"), ("?", "f4"), ("i1", "f4")],
    )
    def test_safe_casts(self, have, want):
        given = np.array([[1, 0, 1, 1, 0]] * 2, have)
        got = from_arrays(given, [InputSpec("v", (None, 5), np.dtype(want))]).batch([0])["v"]
        assert got.dtype == np.dtype(want) and got.tolist() == [[1, 0, 1, 1, 0]]

    @pytest.mark.parametrize(
        ("have", "want"),
        [("i8", "f4"), ("f4", "i8"), ("c8", "f4"), ("U1", "f4"), ("i8", "?"), ("f4", "?"), ("O", "f4")],
    )
    def test_unsafe_casts(self, have, want):
        spec = InputSpec("v", (None, 5), np.dtype(want))
        with fails("'v'", str(np.dtype(have)), str(spec.dtype)):
            from_arrays({"v": np.ones((2, 5)).astype(have)}, [spec])

    @pytest.mark.parametrize(("value", "want"), [(1 << 40, "int32"), (-1, "uint8")])
    def test_integers_beyond_the_inputs_range(self, value, want):
        with fails("'v'", want, "beyond"):
            from_arrays(np.full((2, 5), value), [InputSpec("v", (None, 5), np.dtype(want))])

    def test_nan_is_counted_and_placed(self):
        values = floats(9, 5)
        values[4, 1] = values[7, 0] = np.nan
        values[7, 2] = np.inf
        with fails("'v'", "3 values", "row 4"):
            from_arrays(values, VECTOR)

    def test_nan_is_found_in_every_portion(self, monkeypatch):
        monkeypatch.setattr("thinet_onnx.images._CHECKED_AT_ONCE", 10)
        values = floats(9, 5)
        values[5, 1] = values[8, 4] = np.nan
        with fails("'v'", "2 values", "row 5"):
            from_arrays(values, VECTOR)

    def test_overflow_of_float16_is_found(self):
        values = floats(3, 5)
        values[2, 2] = 1e6
        with fails("'v'", "1 values", "float16", "row 2"):
            from_arrays(values, [InputSpec("v", (None, 5), np.dtype(np.float16))])

    @pytest.mark.parametrize("shape", [(2, 3, 4, 7), (2, 8, 6, 3), (2, 3, 4), (2, 3, 8, 6, 1)])
    def test_shape_mismatch(self, shape):
        with fails("'x'", str(shape), "?,3,8,6", "--shape"):
            from_arrays({"x": floats(*shape)}, RGB)

    def test_zero_rows(self):
        with fails("'v'", "empty", "(0, 5)"):
            from_arrays(floats(0, 5), VECTOR)

    def test_ragged_lists(self):
        with fails("'v'", "no array"):
            from_arrays({"v": [[1.0, 2.0], [3.0]]}, VECTOR)

    def test_string_input_of_the_model(self):
        with fails("'v'", "can't be fed"):
            from_arrays(floats(2, 5), [InputSpec("v", (None, 5), np.dtype(object))])

    def test_large_sizes_are_written_out(self):
        with fails("1234567"):
            from_arrays(floats(2, 5), [InputSpec("v", (None, 1234567), FLOAT)])


class TestFiles:
    def test_npy(self, tmp_path):
        values = floats(4, 5)
        np.save(tmp_path / "a.npy", values)
        source = open_source(tmp_path / "a.npy", VECTOR)
        assert len(source) == 4 and source.labels is None
        assert source.description == f"4 rows of {tmp_path / 'a.npy'}"
        np.testing.assert_array_equal(source.batch([1, 3])["v"], values[[1, 3]])

    def test_npy_feeds_one_input(self, tmp_path):
        np.save(tmp_path / "a.npy", floats(4, 5))
        with fails("a.npy", "'x'", "'v'", ".npz"):
            open_source(tmp_path / "a.npy", TWO)

    def test_npz_with_labels(self, tmp_path):
        x, v = pixels(4, 8, 6, 3), floats(4, 5)
        np.savez_compressed(tmp_path / "a.npz", x=x, v=v, labels=np.array([3, 1, 2, 0], np.uint8))
        source = open_source(str(tmp_path / "a.npz"), TWO, Preprocess(scale=1.0))
        assert source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == [3, 1, 2, 0]
        assert source.description == f"4 images of {tmp_path / 'a.npz'}"
        got = source.batch([2])
        np.testing.assert_array_equal(got["x"][0], x[2].transpose(2, 0, 1))
        np.testing.assert_array_equal(got["v"], v[2:3])

    def test_images_key_feeds_a_single_input(self, tmp_path):
        images = pixels(4, 8, 6, 3)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(4))
        source = open_source(tmp_path / "a.npz", RGB, Preprocess(scale=1.0))
        np.testing.assert_array_equal(source.batch([3])["x"][0], images[3].transpose(2, 0, 1))
        with fails("a.npz", "'x'", "'v'", "'images'"):
            open_source(tmp_path / "a.npz", TWO)

    def test_images_key_is_unknown_beside_the_inputs_name(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=pixels(4, 8, 6, 3), x=floats(4, 3, 8, 6))
        with fails("a.npz", "unknown", "'images'"):
            open_source(tmp_path / "a.npz", RGB)

    def test_messages_name_the_images_key(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=pixels(4, 8, 6, 2))
        with fails("a.npz", "'images'", "'x'"):
            open_source(tmp_path / "a.npz", RGB)

    def test_an_input_may_be_called_labels(self):
        source = from_arrays({"labels": floats(4, 5)}, [InputSpec("labels", (None, 5), FLOAT)])
        assert source.labels is None and source.batch([0])["labels"].shape == (1, 5)

    def test_missing_path(self, tmp_path):
        with fails("nowhere.npz", "doesn't exist", "folder"):
            open_source(tmp_path / "nowhere.npz", RGB)

    def test_unknown_suffix(self, tmp_path):
        (tmp_path / "a.csv").write_text("1,2")
        with fails("a.csv", "folder of images", ".npy", ".npz", "script.py:function"):
            open_source(tmp_path / "a.csv", RGB)

    @pytest.mark.parametrize("name", ["a.npz", "a.npy"])
    @pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00"])
    def test_not_a_numpy_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with fails(name, "can't be read", "numpy.savez"):
            open_source(tmp_path / name, VECTOR)

    @pytest.mark.parametrize("name", ["a.npz", "a.npy"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_truncated(self, tmp_path, name, share):
        np.savez(tmp_path / "a.npz", v=floats(400, 5))
        np.save(tmp_path / "a.npy", floats(400, 5))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with fails(name, "can't be read"):
            open_source(tmp_path / name, VECTOR)

    def test_damaged_member_is_named(self, tmp_path):
        np.savez_compressed(tmp_path / "a.npz", v=floats(400, 5))
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[2000:2100] = bytes(100)
        (tmp_path / "a.npz").write_bytes(content)
        with fails("a.npz", "'v'", "can't be read"):
            open_source(tmp_path / "a.npz", VECTOR)

    def test_pickles_are_never_loaded(self, tmp_path):
        class Trap:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "sprung",))

        objects = np.array([[Trap()] * 5] * 2, dtype=object)
        np.savez(tmp_path / "a.npz", v=objects, allow_pickle=True)
        np.save(tmp_path / "a.npy", objects, allow_pickle=True)
        with fails("a.npy", "never loaded"):
            open_source(tmp_path / "a.npy", VECTOR)
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
            archive.write(tmp_path / "a.npy", "v.npy")
        with fails("b.npz", "'v'", "never loaded"):
            open_source(tmp_path / "b.npz", VECTOR)
        assert not (tmp_path / "sprung").exists()

    def test_missing_input_lists_what_is_there(self, tmp_path):
        np.savez(tmp_path / "a.npz", image=floats(4, 3, 8, 6), v=floats(4, 5))
        with fails("a.npz", "no array 'x'", "'image', 'v'", "'x' float32 (?,3,8,6)", "'v' float32 (?,5)"):
            open_source(tmp_path / "a.npz", TWO)

    def test_extra_array(self, tmp_path):
        np.savez(tmp_path / "a.npz", v=floats(4, 5), weight=floats(4))
        with fails("a.npz", "unknown", "'weight'"):
            open_source(tmp_path / "a.npz", VECTOR)

    def test_different_row_counts(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=floats(4, 3, 8, 6), v=floats(3, 5))
        with fails("a.npz", "'x' 4", "'v' 3"):
            open_source(tmp_path / "a.npz", TWO)

    @pytest.mark.parametrize(
        ("labels", "word"),
        [
            (np.arange(3), "(3,)"),
            (np.zeros((4, 2), int), "(4, 2)"),
            (np.zeros(4), "float64"),
            (np.zeros(4, bool), "bool"),
        ],
    )
    def test_wrong_labels(self, tmp_path, labels, word):
        np.savez(tmp_path / "a.npz", v=floats(4, 5), labels=labels)
        with fails("a.npz", "'labels'", word):
            open_source(tmp_path / "a.npz", VECTOR)
        with fails("'labels'", word):
            from_arrays(floats(4, 5), VECTOR, labels=labels)

    def test_input_without_axes(self):
        inputs = [*VECTOR, InputSpec("flag", (), np.dtype(bool))]
        with fails("'flag' 0", "'v' 4"):
            from_arrays({"v": floats(4, 5), "flag": np.array(True)}, inputs)


class TestFilesOfLargeArrays(TestFiles):
    """The same of arrays that stay in their files."""

    @pytest.fixture(autouse=True)
    def stored(self, monkeypatch):
        made = []
        begin = Stored.__init__

        def noted(self, *rest):
            begin(self, *rest)
            made.append(self)

        monkeypatch.setattr(Stored, "__init__", noted)
        monkeypatch.setattr(arrays, "_LARGE", 0)
        return made

    @pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4"])
    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    def test_rows_are_those_of_the_array(self, tmp_path, stored, name, dtype):
        values = floats(9, 5).astype(dtype)
        if name == "a.npy":
            np.save(tmp_path / name, values)
        else:
            np.savez(tmp_path / name, v=values)
        source = open_source(tmp_path / name, VECTOR)
        for rows in ([4], [8, 0, 3], list(range(9))):
            np.testing.assert_array_equal(source.batch(rows)["v"], values[rows].astype(np.float32))
        np.testing.assert_array_equal(stored[0][...], values)
        np.testing.assert_array_equal(np.asarray(stored[0]), values)
        np.testing.assert_array_equal(stored[0][2:7:2], values[2:7:2])
        assert len(stored) == 1 and len(stored[0]) == 9

    def test_several_arrays_and_labels_of_one_archive(self, tmp_path, stored):
        x, v = pixels(4, 8, 6, 3), floats(4, 5)
        np.savez(tmp_path / "a.npz", x=x, v=v, labels=np.arange(4))
        source = open_source(tmp_path / "a.npz", TWO, Preprocess(scale=1.0))
        assert len(stored) == 2 and source.labels is not None and source.labels.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(source.batch([3, 1])["x"], x[[3, 1]].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(source.batch([3, 1])["v"], v[[3, 1]])

    @pytest.mark.parametrize("kind", ["packed", "by columns", "integers"])
    def test_others_are_loaded(self, tmp_path, stored, kind):
        values = np.arange(20, dtype=np.float32 if kind != "integers" else np.int16).reshape(4, 5)
        spec = [InputSpec("v", (None, 5), FLOAT)]
        saved = np.asfortranarray(values) if kind == "by columns" else values
        (np.savez_compressed if kind == "packed" else np.savez)(tmp_path / "a.npz", v=saved)
        np.testing.assert_array_equal(open_source(tmp_path / "a.npz", spec).batch([2])["v"], values[2:3])
        assert not stored

    def test_damage_and_nan_are_found(self, tmp_path):
        values = floats(400, 5)
        np.savez(tmp_path / "a.npz", v=values)
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[2000] ^= 1
        (tmp_path / "a.npz").write_bytes(content)
        with fails("a.npz", "'v'", "can't be read", "check sum"):
            open_source(tmp_path / "a.npz", VECTOR)
        values[7, 2] = np.nan
        np.save(tmp_path / "a.npy", values)
        with fails("a.npy", "NaN", "row 7"):
            open_source(tmp_path / "a.npy", VECTOR)

    def test_a_file_that_changes_during_the_run(self, tmp_path):
        np.save(tmp_path / "a.npy", floats(4, 5))
        source = open_source(tmp_path / "a.npy", VECTOR)
        source.batch([0])
        (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-40])
        for rows in ([3], [0]):
            with fails("a.npy", "written to"):
                source.batch(rows)

    def test_small_ones_are_loaded(self, tmp_path, stored, monkeypatch):
        monkeypatch.setattr(arrays, "_LARGE", 81)
        np.save(tmp_path / "a.npy", floats(4, 5))
        open_source(tmp_path / "a.npy", VECTOR)
        assert not stored


class TestScripts:
    def test_feeds_are_split_into_rows(self, tmp_path):
        body = (
            "def feeds():\n"
            "    for n in (2, 3):\n"
            "        yield {'v': np.full((n, 5), 10.0 * n) + np.arange(n)[:, None]}\n"
        )
        text = script(tmp_path, body) + ":feeds"
        source = open_source(text, VECTOR)
        assert len(source) == 5 and source.stackable and source.labels is None
        assert source.description == f"5 items of {text}"
        got = source.batch([4, 0, 1, 2])["v"]
        assert got.dtype == np.float32 and got.shape == (4, 5)
        assert got[:, 0].tolist() == [32, 20, 21, 30]

    def test_labels_join_across_feeds(self, tmp_path):
        body = "def feeds():\n    for n in (2, 1):\n        yield {'v': np.ones((n, 5)), 'labels': np.arange(n) + 7}\n"
        source = open_source(script(tmp_path, body) + ":feeds", VECTOR)
        assert source.labels is not None and source.labels.tolist() == [7, 8, 7]

    def test_labels_are_counted_feed_by_feed(self, tmp_path):
        body = (
            "def feeds():\n"
            "    yield {'v': np.ones((2, 5)), 'labels': [1]}\n"
            "    yield {'v': np.ones((1, 5)), 'labels': [1, 2]}\n"
        )
        with fails("feed 1", "'labels'", "(1,)", "2 items"):
            open_source(script(tmp_path, body) + ":feeds", VECTOR)

    def test_labels_in_some_feeds_only(self):
        with fails("1 of 2 feeds", "'labels'"):
            from_arrays([{"v": floats(1, 5), "labels": 3}, {"v": floats(1, 5)}], VECTOR)

    def test_a_generator_may_reuse_its_array(self):
        def feeds() -> Iterator[dict[str, np.ndarray]]:
            buffer = np.empty((1, 5), np.float32)
            label = np.empty(1, np.int64)
            for value in range(3):
                buffer[:], label[:] = value, value
                yield {"v": buffer, "labels": label}

        source = from_arrays(feeds(), VECTOR)
        assert source.batch([0, 1, 2])["v"][:, 0].tolist() == [0, 1, 2]
        assert source.labels is not None and source.labels.tolist() == [0, 1, 2]

    def test_uint8_images_are_preprocessed(self):
        images = pixels(2, 8, 6, 3)
        source = from_arrays([{"images": images[:1]}, {"images": images[1:]}], RGB, Preprocess(scale=1.0))
        np.testing.assert_array_equal(source.batch([0, 1])["x"], images.transpose(0, 3, 1, 2))

    def test_unequal_lengths_make_whole_feeds(self):
        inputs = [InputSpec("v", (None, 5), FLOAT), InputSpec("boxes", (None, 4), FLOAT), InputSpec("k", (), FLOAT)]
        given = [{"v": floats(2, 5), "boxes": floats(n, 4, seed=n), "k": np.float32(n)} for n in (3, 6)]
        source = from_arrays(given, inputs)
        assert len(source) == 2 and not source.stackable and source.labels is None
        np.testing.assert_array_equal(source.batch([1])["boxes"], given[1]["boxes"])
        assert source.batch([1])["k"].shape == () and source.batch([1])["k"] == 6
        with pytest.raises(ValueError, match="2 rows"):
            source.batch([0, 1])

    def test_whole_feeds_are_checked_along_axis_0(self):
        inputs = [InputSpec("v", (1, 5), FLOAT), InputSpec("boxes", (None, 4), FLOAT)]
        assert not from_arrays([{"v": floats(1, 5), "boxes": floats(7, 4)}], inputs).stackable
        with fails("feed 1", "'v'", "2 rows", "1,5"):
            from_arrays([{"v": floats(2, 5), "boxes": floats(7, 4)}], inputs)

    def test_rows_of_differing_shapes_do_not_stack(self):
        spec = [InputSpec("x", (1, 3, None, None), FLOAT)]
        source = from_arrays([{"x": floats(2, 3, 4, 4)}, {"x": floats(1, 3, 6, 5)}], spec)
        assert len(source) == 3 and not source.stackable
        assert source.batch([1])["x"].shape == (1, 3, 4, 4) and source.batch([2])["x"].shape == (1, 3, 6, 5)

    def test_fixed_batch_makes_whole_feeds(self):
        spec = [InputSpec("v", (4, 5), FLOAT)]
        source = from_arrays([{"v": floats(4, 5, seed=n), "labels": np.arange(4)} for n in range(3)], spec)
        assert len(source) == 3 and not source.stackable and source.labels is None
        np.testing.assert_array_equal(source.batch([2])["v"], floats(4, 5, seed=2))
        with fails("feed 1", "'v'", "3 rows", "4,5"):
            from_arrays([{"v": floats(3, 5)}], spec)

    def test_whole_feeds_with_one_label_each(self):
        inputs = [InputSpec("v", (None, 5), FLOAT), InputSpec("boxes", (None, 4), FLOAT)]
        given = [{"v": floats(1, 5), "boxes": floats(7, 4), "labels": n} for n in (5, 8)]
        labels = from_arrays(given, inputs).labels
        assert labels is not None and labels.tolist() == [5, 8]

    def test_relative_modules_and_names_are_found_and_forgotten(self, tmp_path):
        script(tmp_path, "VALUE = 5.0\n", "neighbour_of_calib.py")
        body = (
            "def feeds():\n    import sys\n    import neighbour_of_calib\n"
            "    assert sys.modules[feeds.__module__].feeds is feeds\n"
            "    yield {'v': np.full((1, 5), neighbour_of_calib.VALUE)}\n"
        )
        path, modules = list(sys.path), set(sys.modules)
        assert open_source(script(tmp_path, body, "own_calib.py") + ":feeds", VECTOR).batch([0])["v"].tolist() == [
            [5.0] * 5
        ]
        assert sys.path == path and set(sys.modules) - modules == {"neighbour_of_calib"}
        del sys.modules["neighbour_of_calib"]

    def test_a_script_may_be_called_like_a_module(self, tmp_path):
        body = "def feeds():\n    yield {'v': np.ones((1, 5))}\n"
        assert len(open_source(script(tmp_path, body, "json.py") + ":feeds", VECTOR)) == 1
        assert sys.modules.get("json") is not None and "feeds" not in vars(sys.modules["json"])

    def test_colons_before_the_suffix(self, tmp_path):
        folder = tmp_path / "c:x"
        folder.mkdir()
        body = "def feeds():\n    return [{'v': np.ones((1, 5))}]\n"
        assert len(open_source(script(folder, body) + ":feeds", VECTOR)) == 1

    @pytest.mark.parametrize("ending", ["", ":", ":1x"])
    def test_no_function_named(self, tmp_path, ending):
        with fails("calib.py", "calib.py:function"):
            open_source(script(tmp_path, "") + ending, VECTOR)

    def test_no_such_file(self, tmp_path):
        with fails("nowhere.py", "doesn't exist"):
            open_source(f"{tmp_path}/nowhere.py:feeds", VECTOR)

    def test_no_such_function(self, tmp_path):
        with fails("calib.py", "'feeds'"):
            open_source(script(tmp_path, "feeds = 3\n") + ":feeds", VECTOR)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("def feeds():\n    yield from ()\n", ["no feed"]),
            ("def feeds():\n    yield np.ones((1, 5))\n", ["feed 1", "ndarray"]),
            ("def feeds():\n    return None\n", ["NoneType", "yield"]),
            ("def feeds():\n    return {'v': np.ones((1, 5))}\n", ["returned dict", "yield"]),
            (
                "def feeds():\n    yield {'v': np.ones((1, 5))}\n    yield {'w': np.ones((1, 5))}\n",
                ["feed 2", "'v'", "'w'"],
            ),
            ("def feeds():\n    yield {'v': np.ones((1, 5)) * np.nan}\n", ["feed 1", "'v'", "NaN"]),
        ],
    )
    def test_wrong_feeds(self, tmp_path, body, words):
        path = list(sys.path)
        with fails("calib.py:feeds", *words) as caught:
            open_source(script(tmp_path, body) + ":feeds", VECTOR)
        # The error, alive, keeps the frames of the run alive: the path must not depend on their end.
        assert caught.value and sys.path == path

    @pytest.mark.parametrize(
        ("body", "cause"),
        [
            ("def feeds():\n    yield {'v': np.ones((1, 5))}\n    raise KeyError('spoon\\nfork')\n", KeyError),
            ("def feeds():\n    raise RuntimeError('spoon')\n", RuntimeError),
            ("raise RuntimeError('spoon')\n", RuntimeError),
            ("def feeds(:  # spoon\n", SyntaxError),
            ("raise SystemExit('spoon')\n", SystemExit),
            ("import spoon_that_is_not_there\n", ModuleNotFoundError),
        ],
    )
    def test_exceptions_of_the_script_are_told_and_chained(self, tmp_path, body, cause):
        with fails("calib.py:feeds", "feeds()", cause.__name__) as caught:
            open_source(script(tmp_path, body) + ":feeds", VECTOR)
        assert isinstance(caught.value.__cause__, cause)
        assert cause is SyntaxError or "spoon" in str(caught.value)


class TestFixedBatch:
    spec = (InputSpec("v", (4, 5), FLOAT),)

    def test_rows_are_grouped_and_the_rest_is_dropped(self):
        values = floats(11, 5)
        source = from_arrays(values, self.spec, labels=np.arange(11))
        assert len(source) == 2 and not source.stackable and source.labels is None
        assert source.description == "2 batches of 4 from 11 rows of the data given"
        np.testing.assert_array_equal(source.batch([1])["v"], values[4:8])
        with pytest.raises(ValueError, match="stackable"):
            source.batch([0, 1])

    def test_samples_are_groups(self):
        values = np.arange(40, dtype=np.float32).repeat(5).reshape(40, 5)
        source = from_arrays(values, self.spec, samples=3, seed=1)
        assert len(source) == 3 and not source.stackable
        firsts = [source.batch([row])["v"][0, 0] for row in range(3)]
        assert all(first % 4 == 0 for first in firsts) and firsts == sorted(set(firsts))

    def test_folder(self, tmp_path):
        for value in range(5):
            save(tmp_path / f"{value}.png", np.full((8, 6, 3), value, np.uint8))
        source = open_source(tmp_path, [InputSpec("x", (2, 3, 8, 6), FLOAT)], Preprocess(scale=1.0))
        assert len(source) == 2 and source.batch([1])["x"][:, 0, 0, 0].tolist() == [2, 3]

    def test_too_few_rows(self):
        with fails("3 rows", "4 at once"):
            from_arrays(floats(3, 5), self.spec)

    def test_contradicting_batches(self):
        inputs = [InputSpec("v", (4, 5), FLOAT), InputSpec("w", (2, 5), FLOAT)]
        with fails("'v'", "'w'", "axis 0"):
            from_arrays({"v": floats(4, 5), "w": floats(4, 5)}, inputs)


class TestSamples:
    values = np.arange(50, dtype=np.float32).repeat(5).reshape(50, 5)

    def picked(self, samples: int, seed: int) -> list[int]:
        source = from_arrays(self.values, VECTOR, labels=np.arange(50) + 100, samples=samples, seed=seed)
        rows = [int(value) for value in source.batch(range(len(source)))["v"][:, 0]]
        assert source.labels is not None and source.labels.tolist() == [row + 100 for row in rows]
        return rows

    def test_picked_at_random_in_order_with_their_labels(self):
        rows = self.picked(20, 3)
        assert len(rows) == 20 and rows == sorted(set(rows)) and rows != list(range(20))
        assert rows == self.picked(20, 3) and rows != self.picked(20, 4)

    def test_more_than_there_are_is_all(self):
        assert self.picked(500, 0) == list(range(50))

    def test_description_tells_the_share(self):
        assert from_arrays(self.values, VECTOR, samples=7).description == "7 of 50 rows of the data given"

    def test_of_a_folder(self, tmp_path):
        for value in range(6):
            save(tmp_path / f"{'ab'[value % 2]}/{value}.png", np.full((8, 6, 3), value, np.uint8))
        source = open_source(tmp_path, RGB, Preprocess(scale=1.0), samples=4, seed=2)
        assert source.labels is not None and len(source) == 4
        assert [value % 2 for value in source.batch([0, 1, 2, 3])["x"][:, 0, 0, 0]] == source.labels.tolist()

    def test_none_asked_for(self):
        with fails("--samples 0", error=OptionError):
            from_arrays(self.values, VECTOR, samples=0)

    def test_an_empty_batch_is_a_defect_of_the_caller(self):
        with pytest.raises(ValueError, match="0 rows"):
            from_arrays(self.values, VECTOR).batch([])


class TestNames:
    def test_an_image_is_known_by_its_path_in_the_folder(self, tmp_path):
        for name in ("b/2.png", "a/1.png", "a/3.png"):
            save(tmp_path / name, pixels(8, 6, 3))
        source = open_source(tmp_path, RGB)
        assert [source.title(row) for row in range(3)] == ["a/1.png", "a/3.png", "b/2.png"]
        picked = open_source(tmp_path, RGB, samples=2, seed=3)
        for row in range(2):
            np.testing.assert_array_equal(
                picked.batch([row])["x"],
                source.batch([[source.title(k) for k in range(3)].index(picked.title(row))])["x"],
            )

    def test_other_items_by_their_number(self):
        assert from_arrays(floats(4, 5), VECTOR).title(3) == "sample 3"
        assert random_source(VECTOR, samples=2, seed=0).title(1) == "sample 1"

    def test_what_was_drawn_is_called_as_before(self):
        drawn = from_arrays(floats(9, 5), VECTOR, samples=3, seed=1)
        wanted = np.sort(np.random.default_rng(1).choice(9, 3, replace=False))
        assert [drawn.title(row) for row in range(3)] == [f"sample {row}" for row in wanted]

    def test_several_rows_by_the_first_and_the_last(self):
        fixed = [InputSpec("v", (2, 5), FLOAT)]
        assert from_arrays(floats(4, 5), fixed).title(1) == "sample 2 … sample 3"


class TestRandom:
    inputs = (
        InputSpec("x", (None, 3, 8, 6), FLOAT),
        InputSpec("ids", (1, 7), np.dtype(np.int64)),
        InputSpec("mask", (None, 7), np.dtype(bool)),
    )

    def test_shapes_types_and_ranges(self):
        source = random_source(self.inputs, samples=200, seed=0)
        assert len(source) == 200 and source.stackable and source.labels is None
        assert source.description == "200 items of random data"
        got = source.batch(range(200))
        assert {name: (array.shape, array.dtype.name) for name, array in got.items()} == {
            "x": ((200, 3, 8, 6), "float32"),
            "ids": ((200, 7), "int64"),
            "mask": ((200, 7), "bool"),
        }
        assert abs(got["x"].mean()) < 0.05 and abs(got["x"].std() - 1) < 0.05
        assert set(np.unique(got["ids"])) == set(range(10)) and 0.4 < got["mask"].mean() < 0.6

    def test_an_item_depends_on_seed_and_number_only(self):
        source = random_source(self.inputs, samples=9, seed=5)
        together, alone = source.batch([2, 7]), source.batch([7])
        again, other = random_source(self.inputs, samples=8, seed=5), random_source(self.inputs, samples=9, seed=6)
        for name, array in alone.items():
            np.testing.assert_array_equal(together[name][1:], array)
            np.testing.assert_array_equal(again.batch([7])[name], array)
        assert not np.array_equal(other.batch([7])["x"], alone["x"])
        assert not np.array_equal(source.batch([6])["x"], alone["x"])

    def test_fixed_batches_and_scalars_do_not_stack(self):
        source = random_source([InputSpec("x", (4, 3), FLOAT), InputSpec("k", (), FLOAT)], samples=3, seed=0)
        assert len(source) == 3 and not source.stackable
        assert {name: array.shape for name, array in source.batch([1]).items()} == {"x": (4, 3), "k": ()}

    def test_dynamic_size(self):
        with fails("'x'", "--shape"):
            random_source([InputSpec("x", (None, 3, None, 6), FLOAT)], samples=3, seed=0)

    def test_no_samples(self):
        with fails("--samples 0", error=OptionError):
            random_source(self.inputs, samples=0, seed=0)


class TestSplit:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers(0, 9))
    def test_parts_cover_the_items_without_overlap(self, count, held_out, seed):
        fit, held = split(random_source(VECTOR, samples=count, seed=0), held_out, seed)
        assert fit and held and sorted(fit + held) == list(range(count))
        assert fit == sorted(fit) and held == sorted(held)
        assert len(held) == min(max(round(held_out * count), 1), count - 1)

    def test_seeded(self):
        source = random_source(VECTOR, samples=40, seed=0)
        assert split(source, 0.25, 1) == split(source, 0.25, 1) != split(source, 0.25, 2)
        assert split(source, 0.25, 1)[1] != list(range(10))

    def test_rows_are_plain_integers(self):
        fit, held = split(random_source(VECTOR, samples=4, seed=0), 0.5, 0)
        assert all(type(row) is int for row in fit + held)

    def test_one_item_is_too_few(self):
        with fails("1 rows of the data given", "2 items"):
            split(from_arrays(floats(1, 5), VECTOR), 0.5, 0)

    @pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1])
    def test_share_outside(self, held_out):
        with fails("between 0 and 1", error=OptionError):
            split(random_source(VECTOR, samples=4, seed=0), held_out, 0)

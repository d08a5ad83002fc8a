"""Calibration and test data: folders of images, .npy, .npz and Python functions, as feeds for a model.

Everything is checked against the model's inputs when it is opened, except the pixels of image files, which are decoded
batch by batch. Arrays stay as they were given (uint8 stays uint8) until `Source.batch` makes tensors of some rows.
"""

import itertools
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thinet_onnx import arrays, images, script
from thinet_onnx.errors import DataError, OptionError
from thinet_onnx.images import Array, ImageArray, ImageInput, InputSpec, Labels, Pixels, Preprocess, check_labels

__all__ = ["InputSpec", "Preprocess", "Source", "from_arrays", "open_source", "random_source", "sampled", "split"]

_KINDS = f"a folder of images, .npy, .npz or {script.FORM}"
_PLAIN = Preprocess()
_KEPT_BYTES = 128 << 20  # of a folder's decoded images: each is read in several passes
_MOST_FEEDS, _MOST_BYTES = 1_000_000, 16 << 30  # of a function, all of which is kept; what gives more has no end

_Feed = Mapping[str, images.Column]
_Index = Sequence[tuple[int, int | None]]  # of items: the feed's number, and the row in it or None for the whole feed


class Source(ABC):
    """Items to feed a model with, numbered from 0.

    `labels` are (N,) int64, or None. `description` says what this is in a summary ("1024 images of folder x").
    `stackable` says that items can be joined along axis 0; if not, a batch is exactly one item.
    """

    def __init__(self, description: str, count: int, labels: Labels | None = None, *, stackable: bool = True) -> None:
        self.description = description
        self.labels = labels
        self.stackable = stackable
        self._count = count

    def __len__(self) -> int:
        """Count the items."""
        return self._count

    def batch(self, rows: Sequence[int]) -> dict[str, Array]:
        """Make the feed of some items: {input name: C-contiguous array of the input's dtype}, joined along axis 0.

        Raises DataError if an image file can't be read, ValueError for no rows, or several of items that don't stack.
        """
        if not len(rows) or (len(rows) > 1 and not self.stackable):
            raise ValueError(f"{len(rows)} rows asked of {self.description} (stackable: {self.stackable})")
        return self._feed([int(row) for row in rows])

    def subset(self, rows: Sequence[int], description: str) -> "Source":
        """Some of the items, in this order; `description` goes in front of this source's own ("12 of")."""
        labels = None if self.labels is None else self.labels[list(rows)]
        return _Regrouped(self, [[int(row)] for row in rows], labels, description)

    def title(self, row: int) -> str:
        """What people may know an item by: an image's path in its folder, or its number."""
        return f"sample {row}"

    @abstractmethod
    def _feed(self, rows: list[int]) -> dict[str, Array]:
        """Make the feed of rows whose number `batch` has checked."""


def open_source(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess = _PLAIN,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Source:
    """Open data for a model with `inputs`: a folder of images, a .npy or .npz file, or `script.py:function`.

    A folder is searched for images (jpg, png, bmp, webp, ppm, tif), sorted by path; if they all lie in subfolders, two
    or more, an image's label is the place of its subfolder's name among these, sorted. A .npz file has one array for
    each input under its name (or `images` for a model of one input) and may have integer `labels`. The function, the
    only code that is ever executed, yields dicts of the same form and must come to an end. uint8 arrays for a float
    input of rank 4 are images and undergo `preprocess`; other arrays are taken as they are.

    Where the model's axis 0 is a fixed B > 1, an item is B consecutive rows (the remainder is dropped) or one dict of
    the function. `samples` items are picked at random with `seed`, kept in order; None or more than there are is all.

    Raises DataError if the data can't be read or doesn't fit the model, OptionError if the preprocessing doesn't.
    """
    text = os.fspath(path)
    _check_request(inputs, samples)
    if ".py:" in text or text.endswith(".py"):
        with closing(script.feeds(text)) as feeds:
            source = _from_feeds(feeds, inputs, preprocess, text)
    elif not os.path.exists(text):  # noqa: PTH110  Path.exists fails on names that are too long
        raise DataError(f"{text} doesn't exist: give {_KINDS}.")
    elif Path(text).is_dir():
        source = _from_folder(Path(text), inputs, preprocess)
    elif Path(text).suffix.lower() in (".npy", ".npz"):
        source = _from_table(arrays.read(text, inputs), inputs, preprocess, text)
    else:
        raise DataError(f"{text} is of no known kind: give {_KINDS}.")
    return sampled(source, samples, seed)[0]


def from_arrays(
    data: Mapping[str, Any] | Array | Iterable[Mapping[str, Any]],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess = _PLAIN,
    *,
    labels: npt.ArrayLike | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Source:
    """Take arrays as `open_source` takes files: a dict as .npz, one array as .npy, an iterable of dicts as a script.

    `labels` are (N,) integers for the items, in place of a key `labels`. Arrays that aren't in
    an iterable are neither copied nor changed.

    Raises DataError if the data doesn't fit the model, OptionError if the preprocessing doesn't.
    """
    origin = "the data given"
    _check_request(inputs, samples)
    if isinstance(data, np.ndarray):
        data = {images.only_input(inputs, origin).name: data}
    if isinstance(data, Mapping):
        return sampled(_from_table(data, inputs, preprocess, origin, labels), samples, seed)[0]
    return sampled(_from_feeds(data, inputs, preprocess, origin, labels), samples, seed)[0]


def random_source(inputs: Sequence[InputSpec], *, samples: int, seed: int) -> Source:
    """Make up data: standard normal for float inputs, 0..9 for integers, booleans of both kinds; dynamic axes 0 are 1.

    An item depends on `seed` and its number only. Raises DataError if another axis is dynamic, OptionError if
    `samples` is below 1 or beyond a million.
    """
    _check_request(inputs, samples)
    if samples > _MOST_FEEDS:
        raise OptionError(f"--samples {samples}: {_MOST_FEEDS:,} are the most that are made up; take fewer.")
    for spec in inputs:
        if None in spec.shape[1:]:
            raise DataError(f"Random data needs every size of input {spec}: pass --shape.")
    return _Random(inputs, samples, seed)


def split(source: Source, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the items at random into rows to fit and rows to hold out, disjoint, each at least one, sorted.

    `held_out` is the share held out, 0..1. Raises OptionError if it lies outside, DataError for fewer than two items.
    """
    if not 0 < held_out < 1:
        raise OptionError(f"The share of the data to hold out is {held_out:g}, but must lie between 0 and 1.")
    count = len(source)
    if count < 2:
        raise DataError(f"There is too little data ({source.description}): give 2 items, one to fit and one to check.")
    held = min(max(round(count * held_out), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


class _Feeds(Source):
    """Checked arrays."""

    def __init__(self, feeds: Sequence[_Feed], index: _Index, labels: Labels | None, description: str) -> None:
        item_shapes = {tuple(values.shape[1:] for values in feed.values()) for feed in feeds}
        stackable = len(item_shapes) == 1 and index[0][1] is not None
        super().__init__(description, len(index), labels, stackable=stackable)
        self._feeds, self._index = feeds, index

    def _feed(self, rows: list[int]) -> dict[str, Array]:
        parts = []
        for number, group in itertools.groupby((self._index[row] for row in rows), key=lambda place: place[0]):
            picked = [row for _, row in group]
            which = ... if picked == [None] else picked
            parts.append({name: values.take(which) for name, values in self._feeds[number].items()})
        return _joined(parts)


class _Folder(Source):
    """Image files, decoded when a batch first asks for them; pixels are kept as long as they are few."""

    def __init__(
        self, folder: Path, paths: list[Path], image: ImageInput, labels: Labels | None, description: str
    ) -> None:
        super().__init__(description, len(paths), labels)
        self._folder, self._paths, self._image = folder, paths, image
        self._kept: dict[int, Pixels] = {}
        self._room = _KEPT_BYTES

    def title(self, row: int) -> str:
        """The image's path in the folder."""
        return self._paths[row].relative_to(self._folder).as_posix()

    def _feed(self, rows: list[int]) -> dict[str, Array]:
        pixels = np.concatenate([self._pixels(row) for row in rows])
        return {self._image.name: self._image.tensor(pixels)}

    def _pixels(self, row: int) -> Pixels:
        if row in self._kept:
            return self._kept[row]
        pixels = images.load_pixels(self._paths[row], self._image)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[row] = pixels
        return pixels


class _Random(Source):
    """Items made up when a batch asks for them."""

    def __init__(self, inputs: Sequence[InputSpec], samples: int, seed: int) -> None:
        super().__init__(f"{samples} items of random data", samples, stackable=_rows_are_free(inputs))
        self._inputs, self._seed = inputs, seed

    def _feed(self, rows: list[int]) -> dict[str, Array]:
        return _joined([self._item(row) for row in rows])

    def _item(self, row: int) -> dict[str, Array]:
        rng = np.random.default_rng([self._seed, row])
        item = {}
        for spec in self._inputs:
            shape = tuple(size or 1 for size in spec.shape)
            limit = 2 if spec.dtype.kind == "b" else 10
            drawn = rng.standard_normal(shape) if spec.dtype.kind == "f" else rng.integers(limit, size=shape)
            item[spec.name] = np.asarray(drawn, dtype=spec.dtype)
        return item


class _Regrouped(Source):
    """Items made of items of another source: some of them, or several to one."""

    def __init__(self, inner: Source, items: Sequence[Sequence[int]], labels: Labels | None, description: str) -> None:
        stackable = inner.stackable and len(items[0]) == 1
        super().__init__(f"{description} {inner.description}", len(items), labels, stackable=stackable)
        self._inner, self._items = inner, items

    def title(self, row: int) -> str:
        """The inner items' names, the first and the last."""
        items = self._items[row]
        return " … ".join(self._inner.title(item) for item in dict.fromkeys((items[0], items[-1])))

    def _feed(self, rows: list[int]) -> dict[str, Array]:
        return self._inner.batch([row for item in rows for row in self._items[item]])


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sampled(source: Source, samples: int | None, seed: int) -> tuple[Source, list[int]]:
    """Some items picked at random, in order, and their rows in the source; all of them if there are no more."""
    if samples is None or samples >= len(source):
        return source, list(range(len(source)))
    rows = np.sort(np.random.default_rng(seed).choice(len(source), samples, replace=False)).tolist()
    return source.subset(rows, f"{samples} of"), rows


def _grouped(source: Source, inputs: Sequence[InputSpec], origin: str) -> Source:
    """Make items of B rows if the inputs' axes 0 are a fixed B > 1."""
    sizes = {spec.shape[0] for spec in inputs if spec.shape} - {None}
    if len(sizes) > 1:
        raise DataError(f"{origin}: inputs {', '.join(map(str, inputs))} differ in axis 0: give script.py:function.")
    size = next(iter(sizes), 1) or 1
    if size == 1:
        return source
    items = [range(first, first + size) for first in range(0, len(source) - size + 1, size)]
    if not items:
        raise DataError(f"{origin} has {len(source)} rows, but the model takes {size} at once: give more.")
    return _Regrouped(source, items, None, f"{len(items)} batches of {size} from")


def _from_folder(folder: Path, inputs: Sequence[InputSpec], preprocess: Preprocess) -> Source:
    taken = ", ".join(map(str, inputs))
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or (inputs[0].dtype.kind != "f" and inputs[0].dtype != np.uint8):
        raise DataError(
            f"{folder} is a folder, whose images feed one float or uint8 input of rank 4, but the model takes {taken}: "
            f"give a .npz file."
        )
    image = ImageInput.resolve(inputs[0], preprocess)
    if image.size is None:
        raise DataError(
            f"{folder}: the model's input {taken} has no fixed height and width: pass those it works with, such as --resize "
            "224x224, or --shape."
        )
    if image.channels not in images.CHANNEL_COUNTS:
        raise DataError(f"{folder}: the model's input {taken} has no 1, 3 or 4 channels: pass --shape or --layout.")
    paths, labels = images.find_images(folder)
    return _grouped(
        _Folder(folder, paths, image, labels, f"{len(paths)} images of folder {folder}"), inputs, str(folder)
    )


def _from_table(
    table: Mapping[str, Any], inputs: Sequence[InputSpec], preprocess: Preprocess, origin: str, labels: Any = None
) -> Source:
    """Take one dict of arrays that have as many rows each."""
    feed, own_labels = images.columns(table, inputs, preprocess, origin)
    _check_preprocess(preprocess, [feed], origin)
    counts = {name: values.shape[0] if values.shape else 0 for name, values in feed.items()}
    count = min(counts.values())
    if count == 0 or count < max(counts.values()):
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{origin}: the inputs differ in their numbers of rows ({listed}): give each as many.")
    kind = "images" if any(isinstance(values, ImageArray) for values in feed.values()) else "rows"
    checked = check_labels(own_labels if labels is None else labels, count, origin)
    source = _Feeds([feed], [(0, row) for row in range(count)], checked, f"{count} {kind} of {origin}")
    return _grouped(source, inputs, origin)


def _from_feeds(
    dicts: Iterable[Any], inputs: Sequence[InputSpec], preprocess: Preprocess, origin: str, labels: Any = None
) -> Source:
    """Take dicts one by one; their rows are the items if every array of a dict has as many, else the dicts are."""
    feeds, own_labels = [], []
    held = 0
    for number, given in enumerate(dicts, 1):
        where = f"{origin}, feed {number}"
        if number > _MOST_FEEDS or held > _MOST_BYTES:
            raise DataError(
                f"{where}: {held:,} bytes so far and no end in sight: let it yield fewer, and come to an end."
            )
        if not isinstance(given, Mapping):
            raise DataError(f"{where} is of type {type(given).__name__}: give dicts of {{input name: array}}.")
        # A copy, because a generator may fill the same array again for its next feed.
        feed, feed_labels = images.columns(given, inputs, preprocess, where, copy=True)
        held += sum(np.asarray(array).nbytes for array in given.values())
        feeds.append(feed)
        own_labels.append(feed_labels)
    if not feeds:
        raise DataError(f"{origin}: there is no feed: give at least one dict of {{input name: array}}.")
    _check_preprocess(preprocess, feeds, origin)
    counts = [{values.shape[0] if values.shape else None for values in feed.values()} for feed in feeds]
    by_rows = _rows_are_free(inputs) and all(len(sizes) == 1 for sizes in counts)
    index: _Index = [(number, None) for number in range(len(feeds))]
    if by_rows:
        index = [(number, row) for number, (size,) in enumerate(counts) for row in range(size or 0)]
    else:
        _check_whole(feeds, inputs, origin)
    checked = _feed_labels(own_labels, index, origin) if labels is None else check_labels(labels, len(index), origin)
    return _Feeds(feeds, index, checked, f"{len(index)} items of {origin}")


def _feed_labels(labels: list[Any], index: _Index, origin: str) -> Labels | None:
    given = [number for number, own in enumerate(labels) if own is not None]
    # A dict of several rows that is one item has no single label.
    if not given or (index[0][1] is None and any(np.size(own) > 1 for own in labels)):
        return None
    if len(given) < len(labels):
        raise DataError(f"{origin}: {len(given)} of {len(labels)} feeds have the key 'labels': give it in all or none.")
    counts = Counter(number for number, _ in index)
    checked = [check_labels(labels[number], counts[number], f"{origin}, feed {number + 1}") for number in given]
    return np.concatenate([own for own in checked if own is not None])


def _rows_are_free(inputs: Sequence[InputSpec]) -> bool:
    return all(spec.shape and spec.shape[0] in (1, None) for spec in inputs)


def _check_request(inputs: Sequence[InputSpec], samples: int | None) -> None:
    if samples is not None and samples < 1:
        raise OptionError(f"--samples {samples}: at least 1 is needed.")
    for spec in inputs:
        if spec.dtype.kind not in "fiub":
            raise DataError(f"The model's input {spec} can't be fed: its type must be float, integer or boolean.")


def _check_preprocess(preprocess: Preprocess, feeds: Sequence[_Feed], origin: str) -> None:
    has_images = any(isinstance(values, ImageArray) for feed in feeds for values in feed.values())
    if not has_images and (preprocess.normalises or preprocess.resize is not None):
        options = "--mean, --std, --scale and --resize"
        raise OptionError(f"{options} apply to uint8 images of a float input only, and {origin} has none: omit them.")


def _check_whole(feeds: Sequence[_Feed], inputs: Sequence[InputSpec], origin: str) -> None:
    for number, feed in enumerate(feeds, 1):
        for spec in inputs:
            if spec.shape and spec.shape[0] not in (None, feed[spec.name].shape[0]):
                where = f"{origin}, feed {number}: array {spec.name!r}"
                raise DataError(f"{where} has {feed[spec.name].shape[0]} rows, which doesn't fit input {spec}.")

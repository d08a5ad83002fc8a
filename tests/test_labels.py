"""Union-find over labels, and how labels per element become labels per axis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinet_onnx.labels import PINNED, Ids, Labels, Reason, spread

WHY = Reason("stays for a test", "node", "tensor")
OTHER = Reason("stays for another", "node2", "tensor2")


def parts(labels: Labels, ids: Ids) -> set[frozenset[int]]:
    """The partition of some labels that union-find stands for."""
    found: dict[int, set[int]] = {}
    for label, root in zip(ids.tolist(), labels.find(ids).tolist(), strict=True):
        found.setdefault(root, set()).add(label)
    return {frozenset(part) for part in found.values()}


def united(*groups: list[int]) -> set[frozenset[int]]:
    return {frozenset(group) for group in groups}


def test_new_labels_are_apart_and_never_used_before() -> None:
    labels = Labels()
    first, second = labels.new(3), labels.new(2)
    assert len({PINNED, *first.tolist(), *second.tolist()}) == 6
    assert len(labels) == 6
    assert np.array_equal(labels.find(first), first)


def test_more_labels_than_there_was_room_for() -> None:
    labels = Labels()
    some = labels.new(10)
    labels.unite(some[:1], some)
    many = labels.new(5000)
    assert len(np.unique(labels.find(many))) == 5000
    assert len(np.unique(labels.find(some))) == 1


def test_unite_goes_element_by_element() -> None:
    labels = Labels()
    a, b = labels.new(3), labels.new(3)
    labels.unite(a, b[::-1])
    assert parts(labels, np.concatenate([a, b])) == united([a[0], b[2]], [a[1], b[1]], [a[2], b[0]])


def test_unite_broadcasts() -> None:
    labels = Labels()
    a = labels.new(6).reshape(2, 3)
    labels.unite(a, a[:1])
    assert parts(labels, a.ravel()) == united([a[0, 0], a[1, 0]], [a[0, 1], a[1, 1]], [a[0, 2], a[1, 2]])


def test_unite_is_transitive_within_one_call() -> None:
    labels = Labels()
    a = labels.new(5)
    labels.unite(a[:-1], a[1:])
    assert parts(labels, a) == united(a.tolist())


def test_uniting_with_itself_changes_nothing() -> None:
    labels = Labels()
    a = labels.new(3)
    labels.unite(a, a)
    assert np.array_equal(labels.find(a), a)


def test_find_keeps_the_shape_and_leaves_its_argument() -> None:
    labels = Labels()
    a = labels.new(4).reshape(2, 2)
    labels.unite(a[0], a[1])
    before = a.copy()
    roots = labels.find(a)
    assert roots.shape == (2, 2)
    assert np.array_equal(roots[0], roots[1])
    assert np.array_equal(a, before)


def test_pinned_is_frozen_from_the_start() -> None:
    labels = Labels()
    a = labels.new(2)
    labels.unite(a, np.array([PINNED, a[1]]))
    assert labels.frozen(a).tolist() == [True, False]
    found = labels.reason(int(a[0]))
    assert found is not None
    assert "not a channel" in found.phrase


def test_frozen_spreads_with_its_reason_whichever_side_it_comes_from() -> None:
    for late in (False, True):
        labels = Labels()
        a, b = labels.new(2), labels.new(2)
        if not late:
            labels.freeze(b[:1], WHY)
        labels.unite(a, b)
        if late:
            labels.freeze(b[:1], WHY)
        assert labels.frozen(a).tolist() == [True, False]
        assert labels.reason(int(a[0])) == labels.reason(int(b[0])) == WHY
        assert labels.reason(int(a[1])) is None


def test_first_reason_is_kept() -> None:
    labels = Labels()
    a = labels.new(3)
    labels.freeze(a[:1], WHY)
    labels.freeze(a[:2], OTHER)
    assert [labels.reason(int(label)) for label in a] == [WHY, OTHER, None]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_frozen_labels_one_reason_is_left(order: tuple[int, int]) -> None:
    labels = Labels()
    a = labels.new(2)
    labels.freeze(a[:1], WHY)
    labels.freeze(a[1:], OTHER)
    labels.unite(a[list(order)][:1], a[list(order)][1:])
    assert labels.reason(int(a[0])) == labels.reason(int(a[1]))
    assert labels.reason(int(a[0])) in (WHY, OTHER)


def test_freezing_nothing() -> None:
    labels = Labels()
    a = labels.new(2)
    labels.freeze(np.empty(0, np.int64), WHY)
    assert not labels.frozen(a).any()
    assert labels.frozen(np.empty(0, np.int64)).shape == (0,)


# --- labels per element ------------------------------------------------------------------------------------------------


def per_axis(labels: Labels, layer: Ids) -> tuple[int, list[int]]:
    """The one axis with labels, and their representatives."""
    axes, whole = labels.to_axes(layer)
    assert not whole.size
    ((axis, vector),) = axes.items()
    return axis, labels.find(vector).tolist()


def test_a_view_comes_back_as_its_axis() -> None:
    labels = Labels()
    channels = labels.new(4)
    for shape in ((1, 4, 5, 6), (2, 4, 1, 3)):
        assert per_axis(labels, spread(channels, 1, shape)) == (1, channels.tolist())


def test_a_copy_comes_back_as_its_axis() -> None:
    labels = Labels()
    channels = labels.new(4)
    assert per_axis(labels, spread(channels, 2, (3, 2, 4)).copy()) == (2, channels.tolist())


def test_flatten_repeats_every_channel() -> None:
    labels = Labels()
    channels = labels.new(3)
    layer = spread(channels, 1, (1, 3, 2, 2)).reshape(1, 12)
    assert per_axis(labels, layer) == (1, np.repeat(channels, 4).tolist())


def test_flatten_of_channels_last_tiles_them() -> None:
    labels = Labels()
    channels = labels.new(3)
    layer = spread(channels, 3, (1, 2, 2, 3)).reshape(1, 12)
    assert per_axis(labels, layer) == (1, np.tile(channels, 4).tolist())


def test_groups_unite_the_same_position_of_every_group() -> None:
    labels = Labels()
    channels = labels.new(12)
    layer = spread(channels, 1, (1, 12, 2, 2)).reshape(1, 3, 4, 2, 2)
    assert per_axis(labels, layer) == (2, channels[:4].tolist())
    assert parts(labels, channels) == united(*channels.reshape(3, 4).T.tolist())


def test_the_axis_that_keeps_more_apart_is_chosen() -> None:
    labels = Labels()
    channels = labels.new(12)
    assert per_axis(labels, channels.reshape(4, 3)) == (0, channels[::3].tolist())
    assert parts(labels, channels) == united(*channels.reshape(4, 3).tolist())


def test_shuffle_of_groups_and_back_leaves_as_many_units_as_a_group_has() -> None:
    labels = Labels()
    channels = labels.new(12)
    axes, _ = labels.to_axes(spread(channels, 1, (1, 12, 2)).reshape(1, 3, 4, 2))
    layer = spread(axes[2], 1, (1, 4, 3, 2)).reshape(1, 12, 2)
    axis, roots = per_axis(labels, layer)
    assert axis == 1
    assert roots == np.repeat(channels[:4], 3).tolist()


def test_pixel_shuffle_unites_a_block() -> None:
    labels = Labels()
    channels = labels.new(8)
    blocks = spread(channels, 1, (1, 8, 3, 3)).reshape(1, 2, 2, 2, 3, 3)
    layer = blocks.transpose(0, 1, 4, 2, 5, 3).reshape(1, 2, 6, 6)
    assert per_axis(labels, layer) == (1, channels[::4].tolist())
    assert parts(labels, channels) == united(*channels.reshape(2, 4).tolist())


def test_space_to_depth_gives_every_channel_a_block() -> None:
    labels = Labels()
    channels = labels.new(2)
    blocks = spread(channels, 1, (1, 2, 4, 4)).reshape(1, 2, 2, 2, 2, 2)
    layer = blocks.transpose(0, 3, 5, 1, 2, 4).reshape(1, 8, 2, 2)
    assert per_axis(labels, layer) == (1, np.tile(channels, 4).tolist())


def test_one_label_all_over_would_take_the_tensor_with_it() -> None:
    labels = Labels()
    channels = labels.new(1)
    axes, whole = labels.to_axes(spread(channels, 1, (1, 1, 3)))
    assert axes == {}
    assert whole.tolist() == channels.tolist()


# --- against a naive partition -----------------------------------------------------------------------------------------

pairs = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=40)


def naive(edges: list[tuple[int, int]], count: int) -> list[set[int]]:
    """The partition that `edges` make of 0 … count − 1, by merging sets."""
    found = [{label} for label in range(count)]
    for a, b in edges:
        x, y = next(s for s in found if a in s), next(s for s in found if b in s)
        if x is not y:
            found = [s for s in found if s is not x and s is not y] + [x | y]
    return found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(pairs, max_size=5), st.lists(st.integers(1, 30), max_size=3), st.integers(0, 5))
def test_agrees_with_a_naive_partition(calls: list[list[tuple[int, int]]], frozen: list[int], when: int) -> None:
    labels = Labels()
    everything = np.concatenate([[PINNED], labels.new(30)])
    for turn, edges in enumerate([*calls, []]):
        if turn == min(when, len(calls)):
            for label in frozen:
                labels.freeze(np.array([label]), Reason(f"froze {label}", "", ""))
        if edges:
            labels.unite(*np.array(edges, np.int64).T)
    expected = naive([edge for edges in calls for edge in edges], 31)
    assert parts(labels, everything) == {frozenset(part) for part in expected}
    stays = {PINNED, *frozen}
    for part in expected:
        members = np.array(sorted(part))
        assert labels.frozen(members).tolist() == [bool(part & stays)] * len(part)
        reasons = {labels.reason(int(label)) for label in members}
        assert len(reasons) == 1
        (reason,) = reasons
        if reason is None:
            assert not part & stays
        elif reason.phrase.startswith("froze"):
            assert int(reason.phrase.removeprefix("froze ")) in part
        else:
            assert PINNED in part


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_labels_per_axis_leave_a_rectangle(data: st.DataObject) -> None:
    """Whatever the labels of a tensor's elements, one axis tells which are lost together."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    labels = Labels()
    fresh = np.concatenate([[PINNED], labels.new(8)])
    size = int(np.prod(shape))
    picked = data.draw(st.lists(st.integers(0, 8), min_size=size, max_size=size))
    layer = fresh[np.array(picked)].reshape(shape)
    axes, whole = labels.to_axes(layer)
    assert len(axes) == (not whole.size)
    for axis, vector in axes.items():
        assert np.array_equal(labels.find(layer), labels.find(spread(vector, axis, tuple(shape))))
    assert set(whole.tolist()) == (set() if axes else set(layer.ravel().tolist()))

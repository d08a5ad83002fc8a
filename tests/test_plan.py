"""A plan is data: through JSON and back it stays the same, and readers find what they are promised."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from thinet_onnx.plan import ConsumerCut, ErasedLayer, GroupCut, IntEdit, PrunePlan, TensorCut

names = st.text(max_size=8)
axes = st.integers(-4, 4)
indices = st.sets(st.integers(0, 2047), max_size=6).map(lambda found: tuple(sorted(found)))
values = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5).map(tuple)


def several(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(strategy, max_size=3).map(tuple)


plans = st.builds(
    PrunePlan,
    groups=several(st.builds(GroupCut, names, several(names), st.integers(0, 2048), indices)),
    consumers=several(st.builds(ConsumerCut, names, names, axes, indices)),
    cuts=several(st.builds(TensorCut, names, axes, indices)),
    edits=several(
        st.builds(IntEdit, names, st.integers(0, 3), st.none(), values)
        | st.builds(IntEdit, names, st.none(), names, values)
    ),
)


@settings(deadline=None)
@given(plans)
def test_json_and_back(plan: PrunePlan) -> None:
    assert PrunePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@settings(deadline=None)
@given(plans)
def test_groups_say_how_many_channels_stay(plan: PrunePlan) -> None:
    assert [entry["after"] for entry in plan.to_dict()["groups"]] == [len(group.kept) for group in plan.groups]


def test_the_form_that_readers_rely_on() -> None:
    plan = PrunePlan(
        groups=(GroupCut("conv1", ("conv1", "shortcut"), 4, (0, 3)),),
        consumers=(ConsumerCut("conv2", "conv2.weight", 1, (1, 2)),),
        cuts=(TensorCut("conv1.weight", 0, (1, 2)),),
        edits=(IntEdit("flat", 1, None, (None, 2)),),
        erased=(ErasedLayer("branch", 1, 4),),
    )
    assert plan.to_dict() == {
        "groups": [{"name": "conv1", "producers": ["conv1", "shortcut"], "before": 4, "kept": [0, 3], "after": 2}],
        "consumers": [{"node": "conv2", "weight": "conv2.weight", "axis": 1, "removed": [1, 2]}],
        "cuts": [{"tensor": "conv1.weight", "axis": 0, "removed": [1, 2]}],
        "edits": [{"node": "flat", "operand": 1, "attribute": None, "values": [None, 2]}],
        "erased": [{"node": "branch", "axis": 1, "rank": 4}],
    }

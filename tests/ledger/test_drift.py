from __future__ import annotations

import copy
from typing import Any

import pytest

from raybatch.ledger.drift import Difference, differences, drift_error

PLANNED = {
    "source": {"path": "in/*.jsonl"},
    "stages": [
        {"name": "generate", "prompt": "a", "sampling": {"temperature": 0, "stop": ["x"]}},
        {"name": "embed", "model": "m"},
    ],
}


def _changed(path: list[Any], value: Any) -> Any:
    changed = copy.deepcopy(PLANNED)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["stages", 0, "prompt"], "b", 'stages[0].prompt: "a" -> "b"'),
        (["stages", 0, "sampling", "temperature"], 0.5, "stages[0].sampling.temperature: 0 -> 0.5"),
        (["stages", 0, "sampling", "stop"], ["x", "y"], 'stages[0].sampling.stop[1]: null -> "y"'),
        (["stages", 1, "dtype"], "half", 'stages[1].dtype: null -> "half"'),
        (["stages", 1, "model"], None, 'stages[1].model: "m" -> null'),
        (["source"], "none", 'source: {"path": "in/*.jsonl"} -> "none"'),
    ],
)
def test_a_change_is_named_by_its_path_and_both_values(path: list[Any], value: Any, said: str) -> None:
    assert [str(d) for d in differences(PLANNED, _changed(path, value))] == [said]


def test_an_added_stage_is_a_difference() -> None:
    now = {**PLANNED, "stages": [*PLANNED["stages"], {"name": "more"}]}
    assert [str(d) for d in differences(PLANNED, now)] == ['stages[2]: null -> {"name": "more"}']


@pytest.mark.parametrize(
    "now",
    [
        PLANNED,
        {**PLANNED, "new_option": None},
        {**PLANNED, "stages": tuple(PLANNED["stages"])},
    ],
    ids=["equal", "a new option at its default", "a tuple for a list"],
)
def test_what_means_the_same_is_no_difference(now: Any) -> None:
    assert differences(PLANNED, now) == []


def test_true_is_not_one() -> None:
    assert len(differences({"a": True}, {"a": 1})) == 1


def test_long_values_are_cut_to_where_they_differ() -> None:
    before, after = "word " * 100 + "old" + " tail" * 100, "word " * 100 + "new" + " tail" * 100
    text = str(Difference(path="stages[0].prompt", planned=before, now=after))
    assert len(text) < 200
    assert "old" in text
    assert "new" in text


def test_the_error_lists_every_difference_and_every_choice() -> None:
    found = differences(PLANNED, _changed(["stages", 0, "prompt"], "b"))
    message = str(drift_error(3, found))
    for expected in ("epoch 3", 'stages[0].prompt: "a" -> "b"', "undo", "--allow-drift", "sink.path"):
        assert expected in message

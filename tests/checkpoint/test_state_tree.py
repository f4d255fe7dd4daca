"""Scorer states among plain values."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gipo_vla.checkpoint import state_tree


def test_nested_states_come_back() -> None:
    state = {
        "count": 3,
        "mean": 0.1,
        "name": "x",
        "none": None,
        "scorers": [{"weights": torch.arange(6).reshape(2, 3).T}, {"graph": np.array([1.5, np.nan])}],
    }
    plain, tensors = state_tree.split(state)
    again = state_tree.join(json.loads(json.dumps(plain)), tensors)
    assert torch.equal(again["scorers"][0]["weights"], state["scorers"][0]["weights"])  # type: ignore[index]
    np.testing.assert_array_equal(again["scorers"][1]["graph"].numpy(), [1.5, np.nan])
    assert {key: again[key] for key in ("count", "mean", "name", "none")} == {
        "count": 3,
        "mean": 0.1,
        "name": "x",
        "none": None,
    }


def test_tensors_are_copies() -> None:
    live = torch.zeros(2)
    _, tensors = state_tree.split({"live": live})
    live += 1
    assert tensors["/live"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [{1, 2}, object(), {3: "x"}, lambda: None])
def test_what_json_and_safetensors_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="/value"):
        state_tree.split({"value": value})

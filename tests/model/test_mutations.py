"""The model finds each way of breaking the protocol that mutations.py knows."""

from __future__ import annotations

import os

import pytest
from mutations import MUTATIONS, find


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_model_finds(name: str) -> None:
    found = find(name, seed_of=int(os.environ["RAYBATCH_TEST_SEED"]))
    assert found.what is not None, f"{found.runs} runs, and no violation"

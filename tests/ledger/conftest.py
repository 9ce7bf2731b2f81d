from __future__ import annotations

import pytest

from raybatch.store.memory import MemoryStore
from small_run import run


@pytest.fixture
def output() -> MemoryStore:
    """Two committed epochs, each with data files of units 0 and 1, 2 (a link), 3 and 4, and one of errors."""
    store = MemoryStore()
    run(store, run_id="run-1", epochs=2)
    return store

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybatch.engines.batching import longest_first, pack

lengths = st.lists(st.integers(1, 600), max_size=300).map(lambda found: np.array(found, dtype=np.int64))


@given(lengths, st.integers(1, 4096), st.floats(0, 1), st.integers(0, 500))
def test_batches_hold_every_row_once_and_in_order(
    found: np.ndarray, max_tokens: int, max_padding: float, min_tokens: int
) -> None:
    in_order = found[longest_first(found)]
    batches = pack(in_order, max_tokens=max_tokens, max_padding=max_padding, min_tokens=min_tokens)
    assert [row for batch in batches for row in batch] == list(range(len(found)))


@given(lengths, st.integers(1, 4096))
def test_no_batch_of_several_rows_exceeds_the_budget(found: np.ndarray, max_tokens: int) -> None:
    in_order = found[longest_first(found)]
    batches = pack(in_order, max_tokens=max_tokens)
    assert all(in_order[b.start] * len(b) <= max_tokens for b in batches if len(b) > 1)


@given(lengths, st.floats(0, 0.5))
def test_padding_stays_below_its_share_in_every_batch_that_is_not_small(
    found: np.ndarray, share: float
) -> None:
    in_order = found[longest_first(found)]
    for batch in pack(in_order, max_tokens=4096, max_padding=share, min_tokens=256):
        padded = in_order[batch.start] * len(batch)
        tokens = in_order[batch.start : batch.stop].sum()
        assert padded <= 256 or padded - tokens <= share * padded


def test_a_batch_is_full_where_lengths_are_equal() -> None:
    assert pack(np.full(10, 32), max_tokens=128) == [range(4), range(4, 8), range(8, 10)]


def test_a_row_beyond_the_budget_has_a_batch_of_its_own() -> None:
    assert pack(np.array([500, 40, 40]), max_tokens=100) == [range(1), range(1, 3)]


def test_padding_of_skewed_lengths_is_below_three_percent_of_tokens() -> None:
    generator = np.random.default_rng(0)
    skewed = np.minimum(generator.lognormal(3, 1, 4096), 256).astype(np.int64) + 2
    in_order = skewed[longest_first(skewed)]
    batches = pack(in_order, max_tokens=2048, max_padding=0.02, min_tokens=512)
    padded = sum(int(in_order[b.start]) * len(b) for b in batches)
    assert padded <= 1.03 * skewed.sum()


def test_rows_of_equal_length_keep_their_order() -> None:
    assert longest_first(np.array([3, 5, 3, 5])).tolist() == [1, 3, 0, 2]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        pack(np.array([1]), max_tokens=0)

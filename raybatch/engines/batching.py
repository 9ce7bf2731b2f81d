"""Token-budget batches: rows of similar length together, as many as a budget of padded tokens holds.

A batch costs `longest row x rows`, because every row is padded to the longest. Fixed-size batches of sorted
rows waste most where lengths are skewed; a budget keeps the memory of a batch constant, and closing a batch
early where lengths fall off keeps its padding small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Lengths = np.ndarray[Any, np.dtype[np.int64]]


def longest_first(lengths: Lengths) -> Lengths:
    """The order of rows that `pack` wants. Stable, so that equal input gives equal batches."""
    return np.argsort(-lengths, kind="stable")


def pack(lengths: Lengths, *, max_tokens: int, max_padding: float = 1.0, min_tokens: int = 0) -> list[range]:
    """Cut rows, given by their `lengths` in descending order, into batches of neighbours.

    A batch holds at most `max_tokens` tokens, padding included; a row longer than that has a batch of its own.
    Beyond `min_tokens`, a batch ends before its share of padding would exceed `max_padding` (0.02: 2 % of its
    tokens). Every row is in exactly one range, in order.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    ends = np.concatenate([[0], np.cumsum(lengths)])
    batches = []
    start = 0
    while start < len(lengths):
        longest = max(int(lengths[start]), 1)
        room = min(max(max_tokens // longest, 1), len(lengths) - start)
        rows = np.arange(1, room + 1)
        padded = longest * rows
        padding = padded - (ends[start + 1 : start + room + 1] - ends[start])
        # Lengths fall, so the share of padding never does: what fits is a prefix
        fits = (padding <= max_padding * padded) | (padded <= min_tokens)
        count = max(int(fits.sum()), 1)
        batches.append(range(start, start + count))
        start += count
    return batches

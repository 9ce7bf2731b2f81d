from __future__ import annotations

import pickle

import numpy as np

from raybatch.engines.base import Reply
from raybatch.engines.vectors import VectorReplies


def _replies(rows: int) -> VectorReplies:
    matrix = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    counts = {"prompt_tokens": np.arange(rows), "truncated_texts": np.zeros(rows, dtype=np.int64)}
    return VectorReplies(matrix, counts)


def test_each_reply_holds_its_row_and_its_counts() -> None:
    reply = _replies(4)[2]
    assert isinstance(reply, Reply)
    assert (reply.value.tolist(), reply.stats) == ([6, 7, 8], {"prompt_tokens": 2, "truncated_texts": 0})


def test_replies_survive_a_pickle() -> None:
    there = pickle.loads(pickle.dumps(_replies(5)))
    assert [(r.value.tolist(), r.stats) for r in there] == [(r.value.tolist(), r.stats) for r in _replies(5)]


def test_a_pickle_carries_one_buffer_for_all_vectors() -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(_replies(100), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1 + len(_replies(1)[0].stats)

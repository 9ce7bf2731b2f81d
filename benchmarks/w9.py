"""W9: from nothing to the first published row, against loading the model and then reading, in turn.

Both start as a fresh process. Ours is over when the first unit's record exists; the peer loads the model as
`vllm.LLM` and then reads the input. Units of 64 rows, so that the first unit's own work does not count much.
"""

from __future__ import annotations

from benchmarks import inputs
from benchmarks.measure import Result, interleave, time_ratio
from benchmarks.processes import Ended, measure
from benchmarks.w4 import MODEL, run_ours

ROWS = 256
UNIT_ROWS = 64
PAIRS = 3  # each round loads two models


def run(*, rows: int = ROWS, pairs: int = PAIRS) -> Result:
    """Measure both sides `pairs` times."""
    source = inputs.prompts(rows)
    ours: list[Ended] = []
    bare: list[Ended] = []

    def raybatch() -> float:
        ours.append(run_ours(source, rows=rows, sets=(f"run.unit.max_rows={UNIT_ROWS}",)))
        return _first(ours[-1])

    def in_turn() -> float:
        bare.append(measure("benchmarks.peers.bare_vllm", str(source), MODEL))
        return _load(bare[-1]) + _read(bare[-1])

    first, turn = interleave(raybatch, in_turn, pairs=pairs)
    slower = [max(_load(ended), _read(ended)) for ended in bare[1:]]
    last = ours[-1]
    return Result(
        name="W9",
        ratios=[
            time_ratio(first, slower, peer="the slower of model load and read", wanted="<= 1.1"),
            time_ratio(first, turn, peer="model load, then read", wanted="<= 1.1"),
        ],
        counters={
            "engine ready, share of the time to the first published row": round(
                (last.said["ready_at"] - last.started_at) / first[-1], 3
            ),
            "read, share of the model load": round(_read(bare[-1]) / _load(bare[-1]), 5),
        },
        configurations={
            "rounds": pairs,
            "rows": rows,
            "unit": f"{UNIT_ROWS} rows",
            "model load": "python -c, import vllm, LLM(...) of the same model with the same arguments",
        },
    )


def _first(ended: Ended) -> float:
    return float(ended.said["first_published_at"]) - ended.started_at


def _load(ended: Ended) -> float:
    return float(ended.said["ready_at"]) - ended.started_at


def _read(ended: Ended) -> float:
    return float(ended.said["read_s"])

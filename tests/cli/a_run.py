"""A recorded run, as the views of it are given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raybatch.cli.meter import Meter
from raybatch.engines.pool import PoolStatus, ReplicaStatus
from raybatch.runtime.progress import Snapshot

LOG = Path("/var/log/raybatch/tickets-20260712T120341-4711.log")
WHY = (
    "engine vllm Qwen/Qwen3-8B waits for a place: a replica asks for 2 GPU (more than any node has);"
    " the cluster has\n    node 10.0.0.1 (abcdef12): 1 GPU"
)
PLANNING = {"planned": 0, "published": 0, "resumed": 0}


def replica(state: str = "ready", *, seconds: float = 20, why: str = "") -> ReplicaStatus:
    return ReplicaStatus(name="r", state=state, why=why, seconds=seconds, in_flight=512)


def engine(
    *replicas: ReplicaStatus, tokens: int = 0, model: str = "Qwen/Qwen3-8B", deaths: int = 0
) -> PoolStatus:
    return PoolStatus(
        key=model,
        kind="vllm",
        model=model,
        replicas=replicas or (replica(),),
        deaths=deaths,
        rows=0,
        generated_tokens=tokens,
        load_s=17.3,
        ready_at=None,
        last_reply_at=None,
        error=None,
        describe={},
    )


def snapshot(
    elapsed_s: float = 60,
    *,
    phase: str = "running",
    published: int = 12,
    resumed: int = 3,
    planned: int = 40,
    rows_expected: int | None = 40_960,
    errors: Mapping[str, int] | None = None,
    engines: Sequence[PoolStatus] = (),
    epoch: int = 0,
    epochs: int = 0,
) -> Snapshot:
    """Units of 1,024 rows."""
    rows, failed = published * 1024, sum((errors or {}).values())
    return Snapshot(
        run_id="20260712-120341-3fa2b1",
        pipeline="tickets",
        epoch=epoch,
        epochs=epochs,
        phase=phase,
        elapsed_s=elapsed_s,
        units={"planned": planned, "published": published, "resumed": resumed},
        rows={"in": rows, "ok": rows - failed, "error": failed, "dropped": 0},
        rows_resumed=resumed * 1024,
        rows_expected=rows_expected,
        errors=errors or {},
        tokens={"prompt": 0, "cached": 0, "generated": 0},
        engines=engines,
    )


def recorded(**changes: object) -> Meter:
    """A run that publishes a unit of 1,024 rows and generates 50,000 tokens every 5 s, at second 65."""
    meter = Meter()
    for i in range(10):
        meter.add(snapshot(20 + 5 * i, published=3 + i, engines=[engine(tokens=50_000 * i)]))
    if changes:
        meter.add(snapshot(65, **changes))  # type: ignore[arg-type]
    return meter

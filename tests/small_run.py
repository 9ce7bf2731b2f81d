"""A whole run in miniature, on ledger and sink alone, and an oracle for what it stores.

Each epoch has `units` units of ROWS input rows. By its number modulo 6, a row is turned into two (0), passes
(1, 2, 3), fails (4), or is dropped (5). Like a model, no two attempts give the same text.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybatch.ledger.failpoints import failpoint
from raybatch.ledger.ledger import Ledger
from raybatch.ledger.records import Commit, Layout, Plan, PlanRef, UnitRecord, now, schema_to_text
from raybatch.rows import DROPPED_SCHEMA, ID_FIELDS, UnitRows, source_errors
from raybatch.sinks.parquet import ParquetConfig, ParquetSink
from raybatch.sources.base import UnitSpec
from raybatch.store.base import Store

PIPELINE = "small"
ROWS = 6
# Of five units (of some 8 kB each) the third is large: it is linked, the others are merged two by two. Error
# rows are small: one file.
LAYOUT = Layout(target_bytes=20_000, small_bytes=16_000)
LARGE_UNIT = 2
INPUT_SCHEMA = pa.schema([("text", pa.string())])

Id = tuple[str, int, str | None]


def make_sink(**options: Any) -> ParquetSink:
    return ParquetConfig(type="parquet", path="/unused", **options).build()


def make_plan(
    *, epoch: int = 0, units: int = 5, run_id: str = "run-1", start: Any = None, layout: Layout = LAYOUT
) -> Plan:
    return Plan(
        epoch=epoch,
        pipeline=PIPELINE,
        start=start,
        end={"next": epoch + 1},
        units=tuple(UnitSpec(range={"first": unit * ROWS}, rows=ROWS, bytes=100) for unit in range(units)),
        schema=schema_to_text(INPUT_SCHEMA),
        fingerprint={"stages": [{"name": "generate", "prompt": "Say {{ text }}"}]},
        layout=layout,
        created_by=run_id,
        created_at=now(),
    )


def ok_table(ids: Sequence[Id], text: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    """A stage's output as `raybatch.stages.base.apply` leaves it: the ids come last."""
    held = [pa.array([row_id[n] for row_id in ids], f.type) for n, f in enumerate(ID_FIELDS)]
    return pa.table([pa.array(text, kind), *held], names=["text", *(f.name for f in ID_FIELDS)])


def unit_rows(plan: Plan, unit: int, attempt: str) -> UnitRows:
    """What an attempt makes of a unit."""
    source, numbers = f"input-{plan.epoch}", range(unit * ROWS, (unit + 1) * ROWS)
    ok: list[Id] = []
    for row in numbers:
        ok += [(source, row, "0"), (source, row, "1")] if row % 6 == 0 else []
        ok += [(source, row, None)] if row % 6 in (1, 2, 3) else []
    padding = os.urandom(24_000 if unit == LARGE_UNIT else 6_000).hex()
    failed = [
        {"_source": source, "_row": r, "type": "TooLong", "message": attempt} for r in numbers if r % 6 == 4
    ]
    dropped = [
        {"_source": source, "_row": r, "_child": None, "stage": "filter"} for r in numbers if r % 6 == 5
    ]
    return UnitRows(
        unit=plan.unit_key(unit),
        rows_in=ROWS,
        table=ok_table(ok, [attempt + padding] * len(ok)),
        errors=source_errors(failed),
        dropped=pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA),
        made=1,
        stats={"generated_tokens": 10},
    )


def publish(ledger: Ledger, plan: Plan, unit: int, sink: ParquetSink | None = None) -> UnitRecord:
    attempt = uuid.uuid4().hex[:12]
    reference: PlanRef = plan.reference()
    rows = unit_rows(plan, unit, attempt)
    return (sink or make_sink()).write(rows, plan=reference, attempt=attempt, ledger=ledger)


def run(store: Store, *, run_id: str, epochs: int = 1, units: int = 5) -> Commit | None:
    """The story of `raybatch.runtime.run`, until `epochs` are committed. Gives the last commit made here."""
    ledger, sink, commit = Ledger(store, PIPELINE), make_sink(), None
    ledger.open()
    while (position := ledger.position())[0] < epochs:
        epoch, start = position
        plan = ledger.plan(epoch) or ledger.create_plan(
            make_plan(epoch=epoch, units=units, run_id=run_id, start=start)
        )
        done = ledger.published(plan)
        records = [ledger.record(plan, unit) for unit in sorted(done)]
        records += [publish(ledger, plan, unit, sink) for unit in range(units) if unit not in done]
        files = sink.finalise(plan, records, ledger=ledger)
        commit = ledger.commit(plan, Commit.of(plan, records, files, run_id=run_id))
        failpoint("before-acknowledge")
        failpoint("after-acknowledge")
    return commit


def expected_ids(*, epochs: int = 1, units: int = 5) -> dict[str, set[Id]]:
    """By outcome, the ids that a complete output holds, each once."""
    found: dict[str, set[Id]] = {"ok": set(), "errors": set(), "dropped": set()}
    for epoch, row in itertools.product(range(epochs), range(units * ROWS)):
        source = f"input-{epoch}"
        if row % 6 == 0:
            found["ok"] |= {(source, row, "0"), (source, row, "1")}
        else:
            found[{4: "errors", 5: "dropped"}.get(row % 6, "ok")].add((source, row, None))
    return found


class Oracle:
    """Reads an output with pyarrow and json alone. `objects` are all stored objects by key."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    @classmethod
    def of_folder(cls, path: Any) -> Oracle:
        files = [f for f in path.rglob("*") if f.is_file()]
        return cls({f.relative_to(path).as_posix(): f.read_bytes() for f in files})

    def ids(self) -> dict[str, list[Id]]:
        """What a plain reader sees in data/ and errors/, and the drops of the units that commits name."""
        seen = {"ok": self.keys("data/"), "errors": self.keys("errors/"), "dropped": self.dropped_parts()}
        return {kind: [i for key in keys for i in self.ids_in(key)] for kind, keys in seen.items()}

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def ids_in(self, key: str) -> list[Id]:
        rows = pq.read_table(pa.BufferReader(self.objects[key])).to_pylist()
        return [(row["_source"], row["_row"], row["_child"]) for row in rows]

    def dropped_parts(self) -> list[str]:
        found = []
        for key in self.keys("_raybatch/commit/"):
            for unit, named in enumerate(json.loads(self.objects[key])["units"]):
                folder = f"_raybatch/parts/{key[-13:-5]}/{unit // 1000:05d}"
                part = f"{folder}/{unit:08d}-{named['attempt']}.dropped.parquet"
                found += [part] if part in self.objects else []
        return found

    def attempts_by_unit(self) -> dict[tuple[str, int], set[str]]:
        """For each unit, the attempts whose text readers of data/ and errors/ see."""
        found: dict[tuple[str, int], set[str]] = {}
        for key in [*self.keys("data/"), *self.keys("errors/")]:
            for row in pq.read_table(pa.BufferReader(self.objects[key])).to_pylist():
                text = row["text"] if "text" in row else row["message"]
                found.setdefault((row["_source"], row["_row"] // ROWS), set()).add(text[:12])
        return found

    def check_complete(self, *, epochs: int = 1, units: int = 5) -> None:
        """Every row once, and each unit's rows from one attempt."""
        seen, expected = self.ids(), expected_ids(epochs=epochs, units=units)
        for kind, ids in seen.items():
            assert Counter(ids) == Counter(expected[kind]), kind
        mixed = {unit: texts for unit, texts in self.attempts_by_unit().items() if len(texts) != 1}
        assert mixed == {}


def in_child(action: Callable[[], object], *, failpoint: str = "", user: int | None = None) -> int:
    """Start `action` in a process of its own, forked; gives its id. It exits with 0, or with 1 if it raised.

    With `user`, and as root, it runs as that user.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ["RAYBATCH_FAILPOINT"] = failpoint
        if user is not None and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        action()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def wait_until(condition: Callable[[], bool], *, deadline_s: float = 60) -> None:
    """Returns when `condition` holds; `TimeoutError` if it does not in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {deadline_s} s")
        time.sleep(0.001)


def outcome_of(pid: int) -> int:
    """The exit status of a child, or minus the signal that ended it."""
    statuses: list[int] = []

    def ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        statuses.append(status)
        return found == pid

    try:
        wait_until(ended)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(statuses[-1])

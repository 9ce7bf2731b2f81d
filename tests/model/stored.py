"""What is wrong with a bucket, by an oracle that shares no code with raybatch: it parses the records' JSON and
the Parquet bytes itself, and knows what `story` makes of each row of the input.

Each check raises `AssertionError` that begins with the invariant's name.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import pyarrow.parquet as pq

Id = tuple[int, str | None]  # row, child
Row = tuple[int, str | None, str]  # and the attempt that wrote it
UNIT_ROWS = 3
KINDS = {"ok": "data", "errors": "errors", "dropped": None}


def check(objects: Mapping[str, bytes]) -> None:
    """Check I1 to I6 and I8 on what is stored, at any moment of any number of runs."""
    Stored(objects).check()


def check_complete(objects: Mapping[str, bytes], *, rows: int) -> None:
    """Every one of the `rows` of input is committed, and there once."""
    stored = Stored(objects)
    stored.check()
    assert stored.commits, "I1: nothing is committed"
    end = stored.commits[max(stored.commits)]["end"]["next"]
    assert end == rows, f"I6: {end} of {rows} rows are committed"
    seen = Counter(stored.seen("data") + stored.seen("errors") + stored.dropped())
    expected = ids_of(0, rows)
    every = Counter([*expected["ok"], *expected["errors"], *expected["dropped"]])
    assert seen == every, f"I6: missing {every - seen}, too often {seen - every}"


def ids_of(first: int, end: int) -> dict[str, list[Id]]:
    """What the rows from `first` up to `end` become."""
    found: dict[str, list[Id]] = {"ok": [], "errors": [], "dropped": []}
    for row in range(first, end):
        kind = {4: "errors", 5: "dropped"}.get(row % 6, "ok")
        found[kind] += [(row, "0"), (row, "1")] if row % 6 == 0 else [(row, None)]
    return found


class Stored:
    """The records and rows of a bucket."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = objects
        self.plans = self._records("_raybatch/plan/")
        self.commits = self._records("_raybatch/commit/")
        self.units: dict[tuple[int, int], Mapping[str, Any]] = {}
        self.unit_keys: dict[tuple[int, int], str] = {}
        for key in self._keys("_raybatch/units/"):
            names = key.removesuffix(".json").split("/")
            self.units[int(names[2]), int(names[-1])] = parsed(objects[key])
            self.unit_keys[int(names[2]), int(names[-1])] = key

    def check(self) -> None:
        self._check_chain()
        for (epoch, unit), record in self.units.items():
            self._check_unit(epoch, unit, record)
        for epoch, commit in self.commits.items():
            self._check_commit(epoch, commit)
        self._check_readers()

    def seen(self, folder: str) -> list[Id]:
        """The ids that a plain reader of `folder` sees."""
        return [(row, child) for row, child, _ in self._rows(self._keys(f"{folder}/"))]

    def dropped(self) -> list[Id]:
        """The recorded drops of committed units."""
        named = [
            record["parts"]["dropped"]["key"]
            for (epoch, _), record in self.units.items()
            if epoch in self.commits and "dropped" in record["parts"]
        ]
        return [(row, child) for row, child, _ in self._rows(named)]

    def _check_chain(self) -> None:
        """One plan and one commit per epoch, no gap, and each begins where the one before ended."""
        done = len(self.commits)
        assert sorted(self.commits) == list(range(done)), f"I1: commits of epochs {sorted(self.commits)}"
        # One epoch that is committed next, and one that is worked on meanwhile
        expected = [list(range(done + ahead)) for ahead in range(3)]
        assert sorted(self.plans) in expected, f"I1: plans of {sorted(self.plans)}, {done} commits"
        for epoch, plan in self.plans.items():
            before = self.commits.get(epoch - 1, self.plans[epoch - 1])["end"] if epoch else None
            assert plan["start"] == before, f"I2: epoch {epoch} starts at {plan['start']}, not at {before}"
            commit = self.commits.get(epoch)
            if commit is not None:
                names = ("plan_id", "start", "end")
                assert [commit[n] for n in names] == [plan[n] for n in names], f"I2: commit {epoch}"

    def _check_unit(self, epoch: int, unit: int, record: Mapping[str, Any]) -> None:
        """A published unit is of its plan, and its parts hold its rows and no others."""
        where = f"unit {unit} of epoch {epoch}"
        assert epoch in self.plans, f"I3: {where} is of no plan"
        assert unit < len(self._unit_starts(epoch)), f"I3: {where} is beyond its plan"
        assert record["plan_id"] == self.plans[epoch]["plan_id"], f"I3: {where} is of another plan"
        assert (record["epoch"], record["unit"]) == (epoch, unit), f"I3: {where} says otherwise"
        counts = record["counts"]
        rows_in, made = counts["in"], counts["made"]
        assert rows_in + made == sum(counts[n] for n in ("ok", "error", "dropped")), f"I5: {where}"
        expected = ids_of(*self._range(epoch, unit))
        for kind in KINDS:
            part = record["parts"].get(kind)
            rows = self._named_rows(where, part) if part else []
            assert Counter((r, c) for r, c, _ in rows) == Counter(expected[kind]), f"I6: {kind} of {where}"
            assert {attempt for _, _, attempt in rows} <= {record["attempt"]}, f"I3: {kind} of {where}"

    def _check_commit(self, epoch: int, commit: Mapping[str, Any]) -> None:
        """A committed epoch has all of its units, as recorded, and its files hold their rows once."""
        units = len(self._unit_starts(epoch))
        assert [u for u in range(units) if (epoch, u) not in self.units] == [], f"I4: commit {epoch}"
        assert len(commit["units"]) == units, f"I4: commit {epoch} names {len(commit['units'])} units"
        for unit, said in enumerate(commit["units"]):
            stored = self.objects[self.unit_keys[epoch, unit]]
            is_so = (self.units[epoch, unit]["attempt"], digest(stored))
            assert (said["attempt"], said["checksum"]) == is_so, f"I4: unit {unit} of commit {epoch}"
        expected = ids_of(self._start(epoch), commit["end"]["next"])
        for kind, folder in KINDS.items():
            if folder is None:
                continue
            where = f"commit {epoch}"
            rows = [row for file in commit[folder] for row in self._named_rows(where, file)]
            assert Counter((r, c) for r, c, _ in rows) == Counter(expected[kind]), f"I6: {kind} of {where}"

    def _check_readers(self) -> None:
        """Nobody who reads data/ and errors/ sees a row twice, or one of an attempt that was not published."""
        rows = self._rows(self._keys("data/") + self._keys("errors/"))
        twice = [row for row, count in Counter((r, c) for r, c, _ in rows).items() if count > 1]
        assert not twice, f"I6: readers see {twice} more than once"
        published = {
            row: self.units[epoch, unit]["attempt"]
            for epoch, unit in self.units
            for row in range(*self._range(epoch, unit))
        }
        strangers = [(row, attempt) for row, _, attempt in rows if published.get(row) != attempt]
        assert not strangers, f"I6: readers see rows of attempts that are not the published ones: {strangers}"

    def _named_rows(self, by: str, named: Mapping[str, Any]) -> list[Row]:
        """The rows of an object that a record names, which must be there with the recorded bytes."""
        data = self.objects.get(named["key"])
        assert data is not None, f"I8: {named['key']}, named by {by}, is gone"
        assert (len(data), digest(data)) == (named["size"], named["sha256"]), f"I4: {named['key']} of {by}"
        rows = list(rows_of(data))
        assert len(rows) == named["rows"], f"I5: {named['key']} of {by}"
        return rows

    def _unit_starts(self, epoch: int) -> list[int]:
        return list(range(self._start(epoch), self.plans[epoch]["end"]["next"], UNIT_ROWS))

    def _start(self, epoch: int) -> int:
        start = self.plans[epoch]["start"]
        return start["next"] if start else 0

    def _range(self, epoch: int, unit: int) -> tuple[int, int]:
        """The rows of a unit: from where it starts up to the next, or to the end of the epoch."""
        starts = [*self._unit_starts(epoch), self.plans[epoch]["end"]["next"]]
        return starts[unit], starts[unit + 1]

    def _rows(self, keys: Iterable[str]) -> list[Row]:
        return [row for key in keys for row in rows_of(self.objects[key])]

    def _keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def _records(self, prefix: str) -> dict[int, Mapping[str, Any]]:
        found = {}
        for key in self._keys(prefix):
            record = parsed(self.objects[key])
            epoch = int(key.removeprefix(prefix).removesuffix(".json"))
            assert record["epoch"] == epoch, f"I1: {key} says epoch {record['epoch']}"
            found[epoch] = record
        return found


@lru_cache(maxsize=4096)
def parsed(data: bytes) -> Any:
    """A record."""
    return json.loads(data)


@lru_cache(maxsize=4096)
def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=4096)
def rows_of(data: bytes) -> tuple[Row, ...]:
    """The rows of a Parquet object; an attempt's id is the beginning of what it writes."""
    table = pq.ParquetFile(io.BytesIO(data)).read()
    by = next(name for name in ("text", "message", "stage") if name in table.column_names)
    columns = (table[name].to_pylist() for name in ("_row", "_child", by))
    return tuple((row, child, text[:12]) for row, child, text in zip(*columns, strict=True))

"""Whether an output holds every input row exactly once, seen by a plain reader.

Shares no code with raybatch: it counts the rows of the input files itself, and reads the output with DuckDB,
pyarrow and json. Also a script, for a person with doubts:

    python tests/oracle.py OUTPUT INPUT...

which exits 1 when a row is missing, invented or there twice. Inputs are .jsonl, .csv and .txt files, plain or
.gz, and .parquet.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.fs as pafs
import pyarrow.parquet as pq

Id = tuple[str, int, str | None]  # _source, _row, _child


def input_ids(paths: Iterable[Path], *, named: Callable[[Path], str] = str) -> Counter[Id]:
    """The id of each row of the input files; `named` gives the name by which a run knows a file.

    The number of a row of a plain .jsonl or .txt file is the byte at which its line starts; in all others it
    is the row's ordinal.
    """
    return Counter((named(path), row, None) for path in paths for row in _rows(path.resolve()))


def downloaded(filesystem: pafs.FileSystem, folder: str, *, to: Path) -> Path:
    """A copy, below the new folder `to`, of the output that is in an object store now."""
    to.mkdir(parents=True)
    pafs.copy_files(
        folder, str(to), source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem()
    )
    return to


def _rows(path: Path) -> Iterator[int]:
    if path.suffix == ".parquet":
        yield from range(pq.ParquetFile(path).metadata.num_rows)
        return
    packed = path.suffix == ".gz"
    kind = Path(path.stem).suffix if packed else path.suffix
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    lines = data.splitlines(keepends=True) if kind == ".csv" else data.split(b"\n")
    if kind == ".csv":
        yield from range(sum(1 for line in lines if line.strip()) - 1)
        return
    start, ordinal = 0, 0
    for line in lines:
        last = start + len(line) == len(data)
        blank = not line.strip() if kind == ".jsonl" else last and not line
        if not blank:
            yield ordinal if packed else start
            ordinal += 1
        start += len(line) + 1


class Output:
    """What readers find below a sink's path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def data(self) -> list[dict[str, Any]]:
        """The rows of data/, as DuckDB reads them by one glob."""
        return self._read("data")

    def errors(self) -> list[dict[str, Any]]:
        """The rows of errors/."""
        return self._read("errors")

    def dropped(self) -> list[Id]:
        """The ids of recorded drops, of the attempts that committed epochs name."""
        found = []
        for commit in self.commits():
            parts = self.path / "_raybatch" / "parts" / f"{commit['epoch']:08d}"
            stored = {file.name: file for file in parts.rglob("*.dropped.parquet")}
            for unit, named in enumerate(commit["units"]):
                part = stored.get(f"{unit:08d}-{named['attempt']}.dropped.parquet")
                found += _ids(pq.ParquetFile(part).read().to_pylist()) if part else []
        return found

    def commits(self) -> list[Mapping[str, Any]]:
        """The commits, in order of epochs."""
        files = sorted((self.path / "_raybatch" / "commit").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]

    def plans(self) -> list[Mapping[str, Any]]:
        """The plans, in order of epochs."""
        files = sorted((self.path / "_raybatch" / "plan").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]

    def units(self) -> dict[str, str]:
        """The attempt of each published unit, by the name of its record ("00000000/00000003.json")."""
        root = self.path / "_raybatch" / "units"
        files = root.rglob("*.json")
        return {str(file.relative_to(root)): json.loads(file.read_text())["attempt"] for file in files}

    def ids(self) -> Counter[Id]:
        """Every row id in data/, errors/ and the recorded drops, with the number of times that it is there."""
        return Counter([*_ids(self.data()), *_ids(self.errors()), *self.dropped()])

    def outcomes(self) -> list[tuple[int, str, Id]]:
        """Epoch, kind ("data", "errors" or "dropped") and id of each row that readers can find."""
        found = []
        for folder in ("data", "errors"):
            for file in (self.path / folder).rglob("*.parquet"):
                rows = pq.ParquetFile(file).read(columns=["_source", "_row", "_child"]).to_pylist()
                found += [(int(file.name.split("-")[0]), folder, row) for row in _ids(rows)]
        for commit in self.commits():
            parts = self.path / "_raybatch" / "parts" / f"{commit['epoch']:08d}"
            stored = {file.name: file for file in parts.rglob("*.dropped.parquet")}
            for unit, named in enumerate(commit["units"]):
                part = stored.get(f"{unit:08d}-{named['attempt']}.dropped.parquet")
                rows = _ids(pq.ParquetFile(part).read().to_pylist()) if part else []
                found += [(commit["epoch"], "dropped", row) for row in rows]
        return found

    def _read(self, folder: str) -> list[dict[str, Any]]:
        if not any((self.path / folder).rglob("*.parquet")):
            return []
        pattern = str(self.path / folder / "**" / "*.parquet")
        table = duckdb.sql("SELECT * FROM read_parquet(?, union_by_name = true)", params=[pattern])
        return table.to_arrow_table().to_pylist()


def _ids(rows: Iterable[Mapping[str, Any]]) -> list[Id]:
    return [(row["_source"], row["_row"], row["_child"]) for row in rows]


def wrong(output: Path, expected: Counter[Id]) -> list[str]:
    """What is wrong with an output that should hold `expected`; nothing when every row is there once."""
    found = Output(output).ids()
    kinds = {
        "missing": expected - found,
        "too often": found - expected,
    }
    return [
        f"{sum(rows.values())} rows {what}, such as {next(iter(rows))}"
        for what, rows in kinds.items()
        if rows
    ]


def live_wrong(output: Path, expected: Counter[Id]) -> list[str]:
    """As `wrong`, for an output with retries: an error row does not count once its row, or one made from it, is
    in a later epoch. `expected` are input rows, and rows made from one count as it."""
    found = Output(output)
    last: dict[Id, list[tuple[int, str, Id]]] = {}
    for epoch, kind, row in found.outcomes():
        last.setdefault((row[0], row[1], None), []).append((epoch, kind, row))
    problems = [f"{row} is missing" for row in expected if row not in last]
    problems += [f"{row} was never put in" for row in last if row not in expected]
    for outcomes in last.values():
        standing = [
            (epoch, row)
            for epoch, kind, row in outcomes
            if kind != "errors" or not any(e > epoch and _from(r, row) for e, _, r in outcomes)
        ]
        for epoch, row in standing:
            others = [(e, r) for e, r in standing if (e, r) != (epoch, row)]
            if standing.count((epoch, row)) > 1 or any(_from(r, row) for _, r in others):
                problems.append(f"{row} of epoch {epoch} is there more than once")
    return problems


def _from(row: Id, other: Id) -> bool:
    """Whether `row` is `other`, or was made from it."""
    return row[:2] == other[:2] and (other[2] is None or f"{row[2]}.".startswith(f"{other[2]}."))


def twice(output: Path) -> list[Id]:
    """The ids that readers of data/ and errors/ see more than once, at any moment of a run."""
    seen = Counter([*_ids(Output(output).data()), *_ids(Output(output).errors())])
    return [row for row, count in seen.items() if count > 1]


def main() -> int:
    output, *inputs = map(Path, sys.argv[1:])
    expected = input_ids(path.resolve() for path in inputs)
    found = wrong(output, expected)
    print(*(found or [f"every one of {sum(expected.values())} rows is there once"]), sep="\n")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compare a finished run's answers with the right ones. Needs pyarrow only; knows nothing of raybatch.

    python pipelines/normalise/check.py OUTPUT_DIR

Reads every Parquet file under `OUTPUT_DIR/data`: the struct column `iso` holds the generated `text`, the
column `answer` the right answer. Exits 1 when fewer than 99 % agree, or when there is no row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

REQUIRED_ACCURACY = 0.99
SHOWN_WRONG_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Result:
    """One output row; `generated` is None when the row has no generated text, which counts as wrong."""

    id: str
    text: str
    answer: str
    generated: str | None

    @property
    def right(self) -> bool:
        return self.generated is not None and self.generated.strip() == self.answer


def read_results(data: Path) -> Iterator[Result]:
    """Rows of all Parquet files below `data`, in the order of their paths."""
    for path in sorted(data.rglob("*.parquet")):
        # ParquetFile, not read_table: the latter would add columns for directory names such as `epoch=0`.
        for row in pq.ParquetFile(path).read(columns=["id", "text", "answer", "iso"]).to_pylist():
            generated = (row["iso"] or {}).get("text")
            yield Result(id=row["id"], text=row["text"], answer=row["answer"], generated=generated)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("output_dir", type=Path)
    data: Path = parser.parse_args().output_dir / "data"
    results = list(read_results(data))
    if not results:
        print(f"no rows in {data}: expected *.parquet with columns id, text, answer, iso", file=sys.stderr)
        return 1
    wrong = [r for r in results if not r.right]
    accuracy = 1 - len(wrong) / len(results)
    print(f"rows {len(results)}, right {len(results) - len(wrong)}, accuracy {accuracy:.4f}")
    for result in wrong[:SHOWN_WRONG_ROWS]:
        print(f"wrong: {result.id}: {result.text!r} -> {result.generated!r}, expected {result.answer!r}")
    return 0 if accuracy >= REQUIRED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())

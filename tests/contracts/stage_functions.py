"""Functions for the python cases of test_stages.py, found as those beside a pipeline file are."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def loud(row: dict[str, Any]) -> dict[str, Any]:
    if row["text"] == "bad":
        raise ValueError("bad text")
    return {"id": row["id"], "loud": row["text"].upper()}


async def words(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["text"] == "bad":
        raise ValueError("bad text")
    return [{"id": row["id"], "word": word} for word in row["text"].split()]


def loud_batch(table: pa.Table) -> pa.Table:
    if "bad" in table["text"].to_pylist() or table["text"].null_count:
        raise ValueError("bad text")
    return table.append_column("loud", pc.utf8_upper(table["text"]))


def other(row: dict[str, Any]) -> dict[str, Any]:
    return row

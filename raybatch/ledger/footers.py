"""What the footer of each Parquet file says of where its rows come from: key-values with a common prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raybatch.errors import LedgerError
from raybatch.ledger.records import PlanRef
from raybatch.version import __version__

PREFIX = "raybatch."

# Keys of every file; others, such as the models, come from the caller
_OWN = ("version", "pipeline", "plan", "epoch", "units", "partition")


def footer(
    plan: PlanRef, units: Sequence[tuple[int, str]], extra: Mapping[str, str], *, partition: str = ""
) -> dict[str, str]:
    """The key-values of a file that holds `units` (number and attempt, in the order of their rows), or what
    they have of one partition."""
    own = {
        "version": __version__,
        "pipeline": plan.pipeline,
        "plan": plan.plan_id,
        "epoch": str(plan.epoch),
        "units": json.dumps([list(unit) for unit in units]),
        **({"partition": partition} if partition else {}),
    }
    return {PREFIX + key: value for key, value in {**extra, **own}.items()}


def extras(footers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The caller's key-values of several files, for the file that they are merged into.

    Where they differ (a pipeline changed under --allow-drift) all values are named.
    """
    merged: dict[str, list[str]] = {}
    for one in footers:
        for key, value in one.items():
            name = key.removeprefix(PREFIX)
            if name not in _OWN and value not in merged.setdefault(name, []):
                merged[name].append(value)
    return {name: ", ".join(values) for name, values in merged.items()}


def read_footer(metadata: Any) -> dict[str, str]:
    """Our key-values in a `pyarrow.parquet.FileMetaData`, with their prefix."""
    raw: Mapping[bytes, bytes] = metadata.metadata or {}
    prefix = PREFIX.encode()
    return {k.decode(): v.decode(errors="replace") for k, v in raw.items() if k.startswith(prefix)}


def open_parquet(file: Any, *, where: str, dictionary: Sequence[str] = ()) -> Any:
    """A `pyarrow.parquet.ParquetFile` that gives the columns `dictionary` by dictionary.

    `file` is binary and seekable. Raises `LedgerError` that names `where` if it is no Parquet."""
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, read_dictionary=list(dictionary))
    except (pa.ArrowException, OSError) as error:
        file.close()
        raise LedgerError(f"{where} is not a readable Parquet file: {error}") from None

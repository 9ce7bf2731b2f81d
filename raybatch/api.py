"""The public names of `raybatch`, where they come from. Import them from `raybatch`."""

from __future__ import annotations

import pyarrow as pa

from raybatch.ledger.audit import AuditReport
from raybatch.ledger.audit import audit as _audit
from raybatch.ledger.dataset import CommittedEpoch, committed_epochs, committed_files, read_commits
from raybatch.ledger.gc import GarbageReport
from raybatch.ledger.gc import collect_garbage as _collect_garbage
from raybatch.ledger.records import Commit
from raybatch.ledger.retries import live_rows as _live_rows
from raybatch.rows import ERROR_SCHEMA as _ERROR_SCHEMA
from raybatch.runtime.progress import Reporter, RunReport, Snapshot
from raybatch.runtime.retry import retry
from raybatch.runtime.run import run
from raybatch.spec.load import load_pipeline
from raybatch.spec.pipeline import Pipeline
from raybatch.spec.schema import pipeline_schema
from raybatch.store import StorageOptions, open_store

__all__ = [
    "AuditReport",
    "Commit",
    "CommittedEpoch",
    "GarbageReport",
    "Pipeline",
    "Reporter",
    "RunReport",
    "Snapshot",
    "StorageOptions",
    "audit",
    "collect_garbage",
    "committed_epochs",
    "committed_files",
    "live_errors",
    "load_pipeline",
    "pipeline_schema",
    "read_commits",
    "retry",
    "run",
]


def audit(path: str, storage: StorageOptions | None = None) -> AuditReport:
    """Check invariants I1 to I8 on what is stored below `path`, a sink's path. Reads, never writes."""
    return _audit(open_store(path, storage))


def collect_garbage(
    path: str, storage: StorageOptions | None = None, *, dry_run: bool = False
) -> GarbageReport:
    """Remove what nothing below `path`, a sink's path, references; also while runs are at work."""
    return _collect_garbage(open_store(path, storage), dry_run=dry_run)


def live_errors(path: str, storage: StorageOptions | None = None) -> pa.Table:
    """The error rows below `path`, a sink's path, that no committed retry has taken again, as one table.

    Columns: those of the files in errors/, and `epoch`, the epoch that the row failed in. Rows of epochs that
    are not committed are not there.
    """
    schema = _ERROR_SCHEMA.append(pa.field("epoch", pa.int64()))
    found = [
        table.append_column("epoch", pa.array([epoch] * len(table), pa.int64()))
        for epoch, table in _live_rows(open_store(path, storage))
    ]
    return pa.concat_tables([schema.empty_table(), *found])

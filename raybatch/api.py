"""The public names of `raybatch`, where they come from. Import them from `raybatch`."""

from __future__ import annotations

from raybatch.ledger.audit import AuditReport
from raybatch.ledger.audit import audit as _audit
from raybatch.ledger.dataset import committed_files, read_commits
from raybatch.ledger.records import Commit
from raybatch.runtime.progress import Reporter, RunReport, Snapshot
from raybatch.runtime.run import run
from raybatch.spec.load import load_pipeline
from raybatch.spec.pipeline import Pipeline
from raybatch.spec.schema import pipeline_schema
from raybatch.store import open_store

__all__ = [
    "AuditReport",
    "Commit",
    "Pipeline",
    "Reporter",
    "RunReport",
    "Snapshot",
    "audit",
    "committed_files",
    "load_pipeline",
    "pipeline_schema",
    "read_commits",
    "run",
]


def audit(path: str) -> AuditReport:
    """Check invariants I1 to I8 on what is stored below `path`, a sink's path. Reads, never writes."""
    return _audit(open_store(path))

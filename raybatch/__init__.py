"""raybatch: batch inference with every input row in the output exactly once.

    import raybatch

    pipeline = raybatch.load_pipeline("pipeline.yaml", sets=["run.max_error_rate=0.1"])
    report = raybatch.run(pipeline)
    raybatch.audit(report.output).ok
    raybatch.committed_files(report.output)

Everything the command line does is in these names; it is a thin layer over them. Importing this package loads
neither Ray nor a model library: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raybatch.version import __version__

if TYPE_CHECKING:
    from raybatch.api import (
        AuditReport,
        Commit,
        CommittedEpoch,
        GarbageReport,
        Pipeline,
        Reporter,
        RunReport,
        Snapshot,
        StorageOptions,
        audit,
        collect_garbage,
        committed_epochs,
        committed_files,
        live_errors,
        load_pipeline,
        pipeline_schema,
        read_commits,
        retry,
        run,
    )
    from raybatch.errors import RaybatchError

__all__ = [
    "AuditReport",
    "Commit",
    "CommittedEpoch",
    "GarbageReport",
    "Pipeline",
    "RaybatchError",
    "Reporter",
    "RunReport",
    "Snapshot",
    "StorageOptions",
    "__version__",
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'raybatch' has no attribute '{name}'; it has {', '.join(__all__)}")
    module = "raybatch.errors" if name == "RaybatchError" else "raybatch.api"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__

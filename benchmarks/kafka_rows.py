"""A topic into Arrow by raybatch's source; prints one JSON line: `rows`, `work_s`.

    python -m benchmarks.kafka_rows TOPIC VALUE [--core N | --ray]

VALUE is json or bytes; with bytes everything else of a record is a column too. `--core` does it on that one core, one
unit after the other; `--ray` as tasks of a Ray of this machine, whose tables stay in its object store. `work_s` is
from the first question to the broker to the last table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import time

from raybatch.runtime.planning import UNIT_LIMITS_WITHOUT_ENGINE
from raybatch.sources.base import Source, SourcePlan
from raybatch.sources.kafka.config import KafkaConfig

INCLUDED = ["key", "headers", "timestamp", "timestamp_type", "topic", "partition", "offset"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    parser.add_argument("value", choices=["json", "bytes"])
    parser.add_argument("--core", type=int)
    parser.add_argument("--ray", action="store_true")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    said = {
        "type": "kafka",
        "brokers": os.environ["KAFKA_BROKERS"],
        "topics": [arguments.topic],
        "value": arguments.value,
        "include": INCLUDED if arguments.value == "bytes" else [],
    }
    rows, size = UNIT_LIMITS_WITHOUT_ENGINE
    source = KafkaConfig.model_validate(said).build(max_rows=rows, max_bytes=size)
    print(json.dumps(in_ray(source) if arguments.ray else here(source)))


def here(source: Source) -> dict[str, float]:
    """One unit after the other, in this process."""
    for module in ("pyarrow.json", "raybatch.sources.kafka.kafka_python"):
        importlib.import_module(module)  # a bare client's imports do not count either

    started = time.perf_counter()
    plan = source.plan(after=None)
    rows = sum(len(source.read(unit, key="0", schema=plan.schema).table) for unit in plan.units)
    return {"rows": rows, "work_s": time.perf_counter() - started, "units": len(plan.units)}


def in_ray(source: Source) -> dict[str, float]:
    """A task for each unit, as a run has."""
    import ray

    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    started = time.perf_counter()
    plan: SourcePlan = source.plan(after=None)
    shared = ray.put((source, plan.schema))

    @ray.remote(num_returns=2)  # type: ignore[untyped-decorator]
    def read(shared: tuple[Source, object], unit: object) -> tuple[int, object]:
        of, schema = shared
        found = of.read(unit, key="0", schema=schema)  # type: ignore[arg-type]
        return found.rows_in, found.to_block()

    tasks = [read.remote(shared, unit) for unit in plan.units]
    rows = sum(ray.get([count for count, _ in tasks]))
    ray.wait([table for _, table in tasks], num_returns=len(tasks), fetch_local=False)
    work_s = time.perf_counter() - started
    ray.shutdown()
    return {"rows": rows, "work_s": work_s, "units": len(plan.units)}


if __name__ == "__main__":
    main()

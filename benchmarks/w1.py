"""W1: Kafka to Arrow. Records of 0.1, 1 and 10 KB, against bare clients on one core and `ray.data.read_kafka`.

    python -m benchmarks.w1 [--rows 400000 200000 40000] [--pairs 5]

On one core, raybatch's source plans, reads and decodes JSON into tables; the bare clients only count what they get.
In Ray, both sides read the same columns (values as bytes) into the object store, on all cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from benchmarks.measure import PAIRS, Ratio, Result, interleave, save, speed_ratio, table
from benchmarks.processes import measure
from benchmarks.topics import PARTITIONS, broker, fill

SIZES = (100, 1_000, 10_000)
ROWS = (400_000, 200_000, 40_000)
WANTED_BARE, WANTED_RAY = ">= 0.8", ">= 2.0"


def run(*, rows: Sequence[int] = ROWS, pairs: int = PAIRS) -> Result:
    """Measure all sizes, `rows` records of each."""
    ratios: list[Ratio] = []
    counters: dict[str, float] = {}
    with broker() as cluster:
        os.environ["KAFKA_BROKERS"] = ",".join(cluster.addresses)
        for size, count in zip(SIZES, rows, strict=True):
            topic = fill(cluster, records=count, size=size)
            label = f"{size / 1000:g} KB"
            found, told = _one_core(topic, rows=count, pairs=pairs, label=label)
            ratios += [found, _in_ray(topic, rows=count, pairs=pairs, label=label)]
            counters |= told
    return Result(
        name="W1",
        ratios=ratios,
        counters=counters,
        configurations={
            "rounds": pairs,
            "records": {f"{size} bytes": count for size, count in zip(SIZES, rows, strict=True)},
            "topic": f"{PARTITIONS} partitions, not compressed, one broker on the same machine",
            "one core": "raybatch: JSON to tables, a unit at a time. Bare: poll of 10,000 records, nothing decoded",
            "Ray": "all columns, values as bytes; a task per unit, read_kafka: a task per partition",
        },
    )


def _one_core(topic: str, *, rows: int, pairs: int, label: str) -> tuple[Ratio, dict[str, float]]:
    core = max(os.sched_getaffinity(0))
    bare = "benchmarks.peers.bare_kafka"
    ours, python, confluent = interleave(
        lambda: _seconds("benchmarks.kafka_rows", topic, "json", "--core", str(core), rows=rows),
        lambda: _seconds(bare, topic, "kafka-python", "--core", str(core), rows=rows),
        lambda: _seconds(bare, topic, "confluent-kafka", "--core", str(core), rows=rows),
        pairs=pairs,
    )
    ratio = speed_ratio(ours, python, peer=f"bare kafka-python, one core, {label}", wanted=WANTED_BARE)
    other = speed_ratio(ours, confluent, peer="", wanted=WANTED_BARE)
    return ratio, {f"ours over bare confluent-kafka, one core, {label}": other.ratio}


def _in_ray(topic: str, *, rows: int, pairs: int, label: str) -> Ratio:
    ours, theirs = interleave(
        lambda: _seconds("benchmarks.kafka_rows", topic, "bytes", "--ray", rows=rows),
        lambda: _seconds("benchmarks.peers.ray_data_kafka", topic, rows=rows),
        pairs=pairs,
    )
    return speed_ratio(ours, theirs, peer=f"ray.data.read_kafka, {label}", wanted=WANTED_RAY)


def _seconds(module: str, *arguments: str, rows: int) -> float:
    said = measure(module, *arguments).said
    if said["rows"] != rows:
        raise RuntimeError(f"{module}: {said['rows']} rows came out of {rows}")
    return float(said["work_s"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs=len(SIZES), default=ROWS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    arguments = parser.parse_args()
    result = run(**vars(arguments))
    print(f"{table([result])}\n{save(result)}")


if __name__ == "__main__":
    main()

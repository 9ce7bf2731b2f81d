"""A Kafka broker for benchmarks, and topics of JSON records: that of the tests, filled by Kafka's own producer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import ROOT, words

PARTITIONS = 4
_DIFFERENT = 2_000  # records, which the producer takes at random


@contextmanager
def broker() -> Iterator[Any]:
    """A broker of the tests (`servers.kafka.KafkaCluster`), for as long as the block; needs Java and Maven."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.kafka import KafkaCluster

    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder) / "kafka") as cluster:
        yield cluster


def fill(cluster: Any, *, records: int, size: int) -> str:
    """A new topic of PARTITIONS partitions with JSON objects of `size` bytes: {"id", "n", "body"}; gives its name."""
    from servers.kafka_jars import java

    topic = cluster.topic(f"records-of-{size}", partitions=PARTITIONS)
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as file:
        file.write(b"\n".join(_objects(size)))
        file.flush()
        arguments = ["--topic", topic.name, "--num-records", str(records), "--throughput", "-1"]
        arguments += ["--payload-file", file.name, "--payload-delimiter", "\\n", "--producer-props"]
        arguments += [f"bootstrap.servers={','.join(cluster.addresses)}", "acks=1", "batch.size=262144"]
        main = "org.apache.kafka.tools.ProducerPerformance"
        subprocess.run(java(main, *arguments, memory="512m"), check=True, stdout=subprocess.DEVNULL)
    found = sum(topic.ends().values())
    if found != records:
        raise RuntimeError(f"{found} records were produced, and {records} were wanted")
    return str(topic.name)


def _objects(size: int) -> Iterator[bytes]:
    pool = words(np.random.default_rng(1)).tobytes().decode()
    for n in range(_DIFFERENT):
        row = {"id": f"ticket-{n:06}", "n": n, "body": ""}
        start = n * 4_001 % (len(pool) - size)
        row["body"] = pool[start : start + size - len(json.dumps(row))]
        yield json.dumps(row).encode()

"""A million records from Kafka, while runs are killed and the broker restarts; then count them.

    python tests/faults/kafka_million.py [--records 1000000] [--kills 10] [--restarts 2] [--seed N] [--out DIR]

The records are produced to 12 partitions in transactions, beside which a fifth of all is aborted. Runs are killed with
SIGKILL at random moments, the broker too. At the end every committed record has to be in the output once, no
aborted one, and the group's offsets where the last commit ends. What is there is counted by this script, which
imports nothing of raybatch. Exits 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from oracle import Output  # noqa: E402
from pipelines import Command  # noqa: E402
from servers.kafka import KafkaCluster  # noqa: E402
from servers.kafka_project import KafkaProject  # noqa: E402
from servers.topics import Topic  # noqa: E402

PARTITIONS = 12
TRANSACTION_RECORDS = 1000
ABORTED = 0.2  # of all transactions
UNIT = 5000


def main() -> int:
    options = arguments()
    choose = random.Random(options.seed)
    say(f"seed {options.seed}, output below {options.out}")
    shutil.rmtree(options.out, ignore_errors=True)
    with KafkaCluster(options.out / "kafka") as kafka:
        project = KafkaProject(options.out / "project", kafka=kafka)
        topic = kafka.topic(partitions=PARTITIONS)
        expected = produce(topic, options.records, choose)
        project.read(topic, run={"unit": {"max_rows": UNIT}})
        restarts = set(choose.sample(range(1, options.kills + 1), options.restarts))
        for kill in range(1, options.kills + 1):
            start_and_kill(project, choose, restarts=kill in restarts)
            now = f"{len(project.published())} units are published"
            say(f"kill {kill}: {'the broker has restarted, ' if kill in restarts else ''}{now}")
        done = project.run()
        sys.stderr.write(done.err)
        problems = [*wrong(project.output, expected), *wrong_group(project, topic)]
        problems += [str(done)] if done.code else []
        audit = project.run(command="audit")
        problems += [str(audit)] if audit.code else []
    total = sum(map(len, expected.values()))
    say("\n".join(problems) or f"all {total:,} committed records are there once, and no other")
    return 1 if problems else 0


def produce(topic: Topic, records: int, choose: random.Random) -> dict[str, np.ndarray]:
    """The offsets of `records` committed records, by `_source`; a fifth of all transactions is aborted."""
    producer = topic.cluster.producer(f"{topic.name}-writer")
    found: dict[str, list[int]] = {f"{topic.name}/{n}": [] for n in range(PARTITIONS)}
    committed, aborted, started = 0, 0, time.monotonic()
    while committed < records:
        count = min(TRANSACTION_RECORDS, records - committed)
        producer.begin()
        for n in range(count):
            producer.send(topic.name, {"n": committed + n}, partition=choose.randrange(PARTITIONS))
        if choose.random() < ABORTED:
            aborted += len(producer.abort())
            continue
        for source, offset, _ in producer.commit():
            found[source].append(offset)
        committed += count
    say(f"{committed:,} records committed, {aborted:,} aborted, in {time.monotonic() - started:.0f} s")
    return {source: np.sort(np.array(offsets, np.int64)) for source, offsets in found.items()}


def start_and_kill(project: KafkaProject, choose: random.Random, *, restarts: bool) -> None:
    """Kill a run some units later, or while it starts; with `restarts`, its broker before that."""
    begun = len(project.published())
    command = project.start()
    if not restarts and choose.random() < 0.2:
        time.sleep(choose.uniform(0, 10))
        command.kill()
        return
    if restarts:
        wait_for_units(project, command, begun + 1)
        project.kafka.brokers[0].kill()
        time.sleep(choose.uniform(0, 3))
        project.kafka.restart()
    wait_for_units(project, command, begun + 1 + choose.randrange(20))
    time.sleep(choose.uniform(0, 0.3))
    if command.process.poll() is None:
        command.kill()


def wait_for_units(project: KafkaProject, command: Command, count: int) -> None:
    """Until so many are published, or the run has ended, which it does only when all are."""
    while len(project.published()) < count and command.process.poll() is None:
        time.sleep(0.02)
    if command.process.poll():
        raise SystemExit(f"it failed before it could be killed:\n{command.wait()}")


def wrong(output: Path, expected: Mapping[str, np.ndarray]) -> list[str]:
    """What a plain reader of data/ and errors/ does not find, or finds too often."""
    files = [
        pq.read_table(file, columns=["_source", "_row"]) for file in sorted(output.glob("data/*.parquet"))
    ]
    sources = np.concatenate([table["_source"].to_numpy(zero_copy_only=False) for table in files])
    rows = np.concatenate([table["_row"].to_numpy() for table in files])
    problems = [f"{source}: is no source" for source in set(sources) - expected.keys()]
    for source, offsets in expected.items():
        found = np.sort(rows[sources == source])
        if not np.array_equal(found, offsets):
            missing, more = np.setdiff1d(offsets, found), np.setdiff1d(found, offsets)
            again = len(found) - len(np.unique(found))
            problems.append(f"{source}: missing {missing[:9]}, never committed {more[:9]}, {again} again")
    errors = Output(output).errors()
    return problems + ([f"{len(errors)} error rows, such as {errors[0]}"] if errors else [])


def wrong_group(project: KafkaProject, topic: Topic) -> list[str]:
    """Where Kafka's own command and the last commit, or the end of the topic, disagree."""
    ends = Output(project.output).commits()[-1]["end"]["topics"][topic.name]["next"]
    told = {number: at for (_, number), at in project.kafka.consumer_groups(project.name).items()}
    return [
        f"partition {number}: the last commit ends at {end}, the group is at {told.get(number)}"
        for number, end in enumerate(ends)
        if number not in told or told[number].current != end or told[number].lag != 0
    ]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=2, help="of the broker")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "kafka-million", help="emptied first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

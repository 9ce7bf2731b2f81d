"""Rows in a Kafka topic, a run that is killed half-way, and every right answer once. Needs a broker.

    KAFKA_BROKERS=localhost:9092 python pipelines/normalise/kafka_demo.py --count 10000

Makes the topic `normalise` (which must not exist yet), writes held-out cases to it in transactions, some of which
it aborts and repeats, and runs kafka.yaml. `make demo-kafka` starts a broker for it. Kafka's own
`kafka-consumer-groups` has to be on PATH.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from kafka import KafkaAdminClient, KafkaProducer

from make_input import line_of
from task import Case, cases

HERE = Path(__file__).resolve().parent
PIPELINE = HERE / "kafka.yaml"
OUTPUT = HERE.parents[1] / "out" / "normalise-kafka" / "output"
RAYBATCH = [sys.executable, "-m", "raybatch.cli.main"]
TOPIC, GROUP = "normalise", "normalise-kafka"
PARTITIONS = 4
TRANSACTION_ROWS = 250
ABORTED_OF = 4  # every fourth transaction is aborted first


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def produce(brokers: str, rows: Sequence[Case]) -> int:
    """Write all rows, each in one committed transaction; gives how many were written in vain besides."""
    with KafkaAdminClient(bootstrap_servers=brokers.split(",")) as admin:
        admin.create_topics({TOPIC: {"num_partitions": PARTITIONS}}, wait_for_metadata=True)
    aborted = 0
    with KafkaProducer(bootstrap_servers=brokers.split(","), transactional_id=f"{TOPIC}-demo") as producer:
        producer.init_transactions()
        for number, batch in enumerate(_batches(rows)):
            for vain in [True, False] if number % ABORTED_OF == 0 else [False]:
                producer.begin_transaction()
                for place, case in enumerate(batch):
                    producer.send(TOPIC, line_of(case).encode(), partition=place % PARTITIONS)
                producer.flush()
                if vain:
                    producer.abort_transaction()
                    aborted += len(batch)
                else:
                    producer.commit_transaction()
    return aborted


def _batches(rows: Sequence[Case]) -> Iterator[list[Case]]:
    rest = iter(rows)
    while batch := list(itertools.islice(rest, TRANSACTION_ROWS)):
        yield batch


def run_and_kill(*, after_units: int) -> None:
    """Start the pipeline, and send SIGKILL to it as soon as so many units are published."""
    process = subprocess.Popen([*RAYBATCH, "run", str(PIPELINE)])
    while len(list((OUTPUT / "_raybatch" / "units").rglob("*.json"))) < after_units:
        if process.poll() is not None:
            sys.exit(f"the run ended before it could be killed, with exit code {process.returncode}")
        time.sleep(0.05)
    process.kill()
    process.wait()


def check_rows(expected: Sequence[Case]) -> None:
    """Each row of the topic is in the output once, and nothing else is."""
    found: Counter[str] = Counter()
    for path in OUTPUT.glob("data/**/*.parquet"):
        found.update(pq.ParquetFile(path).read(columns=["id"])["id"].to_pylist())
    wanted = Counter(case.id for case in expected)
    if found != wanted:
        sys.exit(f"{(wanted - found).total()} rows are missing, {(found - wanted).total()} are too many")
    print(f"every one of {wanted.total()} rows is there once")


def check_lag(brokers: str) -> None:
    """Kafka's own command says that the group has read everything."""
    command = ["kafka-consumer-groups", "--bootstrap-server", brokers, "--describe", "--group", GROUP]
    text = subprocess.run([*command, "--offsets"], capture_output=True, text=True, check=True).stdout
    print(text.strip())
    rows = [line.split() for line in text.splitlines() if line.startswith(("GROUP", GROUP))]
    lags = [row[rows[0].index("LAG")] for row in rows[1:]]
    if lags != ["0"] * PARTITIONS:
        sys.exit(
            f"the lag should be 0 on each of {PARTITIONS} partitions, and is {', '.join(lags) or 'unknown'}"
        )


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--count", type=int, default=10_000, help="rows")
    count: int = parser.parse_args().count
    brokers = os.environ.get("KAFKA_BROKERS") or parser.error("KAFKA_BROKERS names no broker")
    if OUTPUT.exists():
        parser.error(f"{OUTPUT} is the output of another topic: remove it first")
    rows = list(cases(count=count, seed=2, split="held_out"))

    say(f"{count} rows into {PARTITIONS} partitions of the topic '{TOPIC}'")
    aborted = produce(brokers, rows)
    print(f"in transactions of {TRANSACTION_ROWS}; {aborted} more records were written and aborted")
    say("raybatch run, and SIGKILL half-way")
    run_and_kill(after_units=count // 700)  # of some 28
    say("raybatch run, again")
    subprocess.run([*RAYBATCH, "run", str(PIPELINE)], check=True)
    say("the answers, the rows, the ledger, and what Kafka says")
    subprocess.run([sys.executable, HERE / "check.py", OUTPUT], check=True)
    check_rows(rows)
    subprocess.run([*RAYBATCH, "audit", str(PIPELINE)], check=True)
    check_lag(brokers)


if __name__ == "__main__":
    main()

"""A bare Kafka client reads a topic to its end and counts; prints one JSON line: `rows`, `work_s`.

    python -m benchmarks.peers.bare_kafka TOPIC CLIENT --core N

CLIENT is kafka-python or confluent-kafka. Nothing is decoded and nothing kept: the most that this client can give on
one core. Checksums are checked, as they are by default in kafka-python, and as raybatch does.
"""

from __future__ import annotations

import argparse
import json
import os
import time

BATCH = 10_000  # records that one call gives at most: a call costs, whatever it gives


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    parser.add_argument("client", choices=["kafka-python", "confluent-kafka"])
    parser.add_argument("--core", type=int, required=True)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    read = with_kafka_python if arguments.client == "kafka-python" else with_confluent_kafka
    print(json.dumps(read(arguments.topic)))


def with_kafka_python(topic: str) -> dict[str, float]:
    """`KafkaConsumer.poll`, all partitions at once."""
    from kafka import KafkaConsumer, TopicPartition

    started = time.perf_counter()
    consumer = KafkaConsumer(
        bootstrap_servers=os.environ["KAFKA_BROKERS"], enable_auto_commit=False, max_poll_records=BATCH
    )
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    wanted = sum(consumer.end_offsets(partitions).values())
    rows = 0
    while rows < wanted:
        rows += sum(len(some) for some in consumer.poll(timeout_ms=1000).values())
    return {"rows": rows, "work_s": time.perf_counter() - started}


def with_confluent_kafka(topic: str) -> dict[str, float]:
    """`Consumer.consume`, all partitions at once."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    started = time.perf_counter()
    settings = {
        "bootstrap.servers": os.environ["KAFKA_BROKERS"],
        "group.id": "bare",
        "enable.auto.commit": False,
        "check.crcs": True,
    }
    consumer = Consumer(settings)
    numbers = consumer.list_topics(topic).topics[topic].partitions
    wanted = sum(consumer.get_watermark_offsets(TopicPartition(topic, number))[1] for number in numbers)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers])
    rows = 0
    while rows < wanted:
        for message in consumer.consume(BATCH, timeout=1):
            if message.error() is None:
                message.value()
                rows += 1
    work_s = time.perf_counter() - started
    consumer.close()
    return {"rows": rows, "work_s": work_s}


if __name__ == "__main__":
    main()

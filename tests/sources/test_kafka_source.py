"""The kafka source on a real broker: every committed record once, and what is lost is told."""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybatch.errors import InputChangedError, SourceError, StoreError
from raybatch.rows import ID_COLUMNS, UnitRows
from raybatch.sources.base import SourcePlan, UnitSpec
from raybatch.sources.kafka.config import KafkaConfig
from raybatch.sources.kafka.source import KafkaSource
from servers.kafka import KafkaCluster
from servers.topics import Id, Topic

pytestmark = pytest.mark.kafka

HOUR_MS = 3_600_000


def source(*topics: Topic, max_rows: int = 10, **said: Any) -> KafkaSource:
    named = {} if "topic_pattern" in said else {"topics": [topic.name for topic in topics]}
    base = {"type": "kafka", "brokers": topics[0].cluster.addresses, "read_timeout_s": 30, **named}
    return KafkaConfig.model_validate(base | said).build(max_rows=max_rows, max_bytes=1 << 20)


def read(of: KafkaSource, plan: SourcePlan) -> list[UnitRows]:
    return [of.read(unit, key=f"unit {i}", schema=plan.schema) for i, unit in enumerate(plan.units)]


def ids(units: Sequence[UnitRows]) -> list[Id]:
    tables = [table.select(list(ID_COLUMNS)) for unit in units for table in (unit.table, unit.errors)]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def column(units: Sequence[UnitRows], name: str) -> list[Any]:
    return [value for unit in units for value in unit.table[name].to_pylist()]


def errors(units: Sequence[UnitRows]) -> list[tuple[str, int]]:
    return [(row["type"], row["_row"]) for unit in units for row in unit.errors.to_pylist()]


def rows(count: int, *, first: int = 0) -> list[dict[str, int]]:
    return [{"n": n} for n in range(first, first + count)]


def transactions(kafka: KafkaCluster, topic: Topic, outcomes: str, *, each: int = 5) -> list[Id]:
    """Transactions of `each` records, one for each letter: (c)ommitted or (a)borted; the ids of committed ones."""
    producer = kafka.producer(transactional_id=f"of-{topic.name}")
    found = []
    for outcome in outcomes:
        producer.begin()
        for row in rows(each):
            producer.send(topic.name, row)
        found += producer.commit() if outcome == "c" else producer.abort() * 0
    producer.close()
    return found


# --- what is planned and read ----------------------------------------------------------------------------------


def test_every_record_of_every_partition_is_read_once(kafka: KafkaCluster) -> None:
    first, second = kafka.topic(partitions=3), kafka.topic()
    sent = [one for n in range(3) for one in first.produce(rows(7 + 10 * n), partition=n)]
    sent += second.produce(rows(25))
    both = source(first, second)
    plan = both.plan(after=None)
    assert sorted(ids(read(both, plan))) == sorted(sent)
    assert {unit.rows for unit in plan.units} == {None}
    assert plan.schema == pa.schema([("n", pa.int64())])


def test_units_of_one_partition_are_read_at_the_same_time(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sent = topic.produce([{"text": "x" * 500, **row} for row in rows(2000)])
    one = source(topic, max_rows=150)
    plan = one.plan(after=None)
    with ThreadPoolExecutor(4) as threads:
        units = list(threads.map(lambda unit: one.read(unit, key="u", schema=plan.schema), plan.units))
    assert len(units) == 14
    assert ids(units) == sent
    assert column(units, "n") == list(range(2000))


def test_aborted_records_and_markers_are_gaps(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sent = transactions(kafka, topic, "acaacca")
    assert topic.ends() == {0: 7 * 6}
    for max_rows in (1000, 7, 1):
        one = source(topic, max_rows=max_rows)
        plan = one.plan(after=None)
        assert ids(read(one, plan)) == sent
        assert plan.end["topics"][topic.name]["next"] == [42]
        assert one.plan(after=plan.end).units == []


def test_records_of_an_open_transaction_come_in_a_later_epoch(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    before = topic.produce(rows(3))
    producer = kafka.producer(transactional_id=f"open-{topic.name}")
    producer.begin()
    producer.send(topic.name, {"n": 100})
    inside = producer.flush()
    after = topic.produce(rows(3))
    one = source(topic)
    first = one.plan(after=None)
    assert ids(read(one, first)) == before
    assert one.plan(after=first.end).units == []
    producer.commit()
    second = one.plan(after=first.end)
    assert ids(read(one, second)) == [*inside, *after]


def test_a_topic_without_any_committed_record_waits_for_one(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    transactions(kafka, topic, "a")
    one = source(topic)
    first = one.plan(after=None)
    assert (first.units, len(first.schema)) == ([], 0)
    assert one.plan(after=first.end).end == first.end
    sent = topic.produce(rows(2))
    later = one.plan(after=first.end)
    assert ids(read(one, later)) == sent


def test_limits_take_a_part_of_each_partition_until_nothing_is_left(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=2)
    sent = topic.produce(rows(30)) + topic.produce(rows(5), partition=1)
    one = source(topic, max_records=12)
    plans = [one.plan(after=None)]
    while plans[-1].full:
        plans.append(one.plan(after=plans[-1].end))
    assert [plan.end["topics"][topic.name]["next"] for plan in plans] == [[7, 5], [19, 5], [30, 5]]
    assert sorted(i for plan in plans for i in ids(read(one, plan))) == sorted(sent)


def test_topics_that_appear_and_partitions_that_are_added_are_read_from_their_first_offset(
    kafka: KafkaCluster,
) -> None:
    family = kafka.topic()
    sent = family.produce(rows(3))
    one = source(family, topic_pattern=f"{family.name}.*", start="latest")
    plans = [one.plan(after=None)]
    assert plans[0].units == []
    family.add_partitions(2)
    child = kafka.topic(f"{family.name}-child")
    sent = [*family.produce(rows(3)), *family.produce(rows(4), partition=1), *child.produce(rows(5))]
    plans.append(one.plan(after=plans[0].end))
    assert sorted(ids(read(one, plans[1]))) == sorted(sent)


def test_a_named_topic_that_is_not_there_is_an_error_with_choices(kafka: KafkaCluster) -> None:
    topic = Topic(cluster=kafka, name="nobody-made-this")
    with pytest.raises(SourceError, match=r"nobody-made-this: there is no such topic\. Create it, or leave"):
        source(topic).plan(after=None)


def test_brokers_that_do_not_answer_are_an_error_that_says_which(kafka: KafkaCluster) -> None:
    one = source(kafka.topic(), brokers=["127.0.0.1:1"], read_timeout_s=0.5)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1.*source\.brokers"):
        one.plan(after=None)


def test_units_hold_about_as_many_bytes_as_they_may(kafka: KafkaCluster) -> None:
    large, small = kafka.topic(), kafka.topic()
    large.produce([b"x" * 100_000] * 40)
    small.produce([b"x" * 10] * 2000)
    both = source(large, small, max_rows=1_000_000, value="bytes")
    plan = both.plan(after=None)
    sizes = [unit.bytes for unit in plan.units if unit.range["topic"] == large.name]
    assert sum(sizes) == 4_000_000
    assert 4 <= len(sizes) <= 5
    assert [unit.bytes for unit in plan.units if unit.range["topic"] == small.name] == [20_000]


# --- where it starts and ends ------------------------------------------------------------------------------------


def test_a_first_epoch_can_start_and_end_at_a_time(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=1)
    times = [begin + timedelta(hours=hour) for hour in range(6)]
    for hour, at in enumerate(times):
        topic.produce([{"n": hour}], timestamp_ms=int(at.timestamp() * 1000))
    one = source(topic, start=times[2], end=times[4], include=["timestamp"])
    units = read(one, one.plan(after=None))
    assert column(units, "n") == [2, 3]
    assert column(units, "timestamp") == times[2:4]


def test_a_first_epoch_can_start_where_the_group_is(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=2)
    sent = topic.produce(rows(10)) + topic.produce(rows(10), partition=1)
    group = f"group-{topic.name}"
    first = source(topic, group=group, end={topic.name: {0: 4, 1: 0}})
    first.acknowledge(first.plan(after=None).end)
    one = source(topic, group=group, start="committed")
    assert sorted(ids(read(one, one.plan(after=None)))) == sorted(sent[4:])


def test_offsets_say_where_each_partition_starts_and_ends(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=2)
    sent = topic.produce(rows(10)) + topic.produce(rows(10), partition=1)
    one = source(topic, start={topic.name: {"1": 8}}, end={topic.name: {"0": 3}})
    assert sorted(ids(read(one, one.plan(after=None)))) == sorted([*sent[:3], *sent[18:]])


# --- what changes meanwhile --------------------------------------------------------------------------------------


def test_offsets_lost_before_the_plan(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    one = source(topic)
    topic.produce(rows(10))
    first = one.plan(after=None)
    sent = topic.produce(rows(20))
    topic.delete_records(before=25)
    with pytest.raises(InputChangedError, match=f"{topic.name}/0, offsets 10 to 24.*on_lost_range: skip"):
        one.plan(after=first.end)
    skipping = source(topic, on_lost_range="skip")
    plan = skipping.plan(after=first.end)
    units = read(skipping, plan)
    assert errors(units) == [("RecordsLost", 10)]
    assert Counter(ids(units)) == Counter([(f"{topic.name}/0", 10, None), *sent[15:]])
    assert any("offsets 10 to 24 were deleted" in note for note in plan.notes)
    assert ids(read(skipping, plan)) == ids(units)


def test_offsets_lost_between_plan_and_read(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sent = topic.produce(rows(20))
    one = source(topic)
    plan = one.plan(after=None)
    topic.delete_records(before=15)
    with pytest.raises(InputChangedError, match=f"unit unit 0, .*{topic.name}/0, offsets 0 to 9"):
        read(one, plan)
    units = read(source(topic, on_lost_range="skip"), plan)
    assert errors(units) == [("RecordsLost", 0), ("RecordsLost", 10)]
    assert Counter(ids(units)) == Counter([sent[0], sent[10], *sent[15:]])


def test_a_topic_that_was_made_again(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    topic.produce(rows(5))
    one = source(topic)
    plan = one.plan(after=None)
    topic.delete()
    topic.create()
    topic.produce(rows(9))
    with pytest.raises(InputChangedError, match=f"{topic.name}: it is another topic now"):
        read(one, plan)
    with pytest.raises(InputChangedError, match=f"'{topic.name}' was deleted and made again"):
        one.plan(after=plan.end)


# --- values ------------------------------------------------------------------------------------------------------


def test_columns_are_inferred_once_and_kept_and_new_ones_are_noted(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    one = source(topic)
    topic.produce([{"id": 1, "at": "2026-11-01"}])
    first = one.plan(after=None)
    topic.produce([{"id": "not a number", "at": None}] * 3)
    second = one.plan(after=first.end)
    assert second.schema == first.schema
    assert errors(read(one, second)) == [("SchemaViolation", offset) for offset in (1, 2, 3)]
    topic.produce([{"id": 5, "tag": "x"}])
    third = one.plan(after=second.end)
    assert column(read(one, third), "tag") == ["x"]
    assert any("columns tag" in note for note in third.notes)


def test_tombstones_alone_need_declared_columns(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sent = topic.produce([None, None], key=b"k")
    with pytest.raises(SourceError, match=r"none of 2 sampled records .* source\.schema"):
        source(topic).plan(after=None)
    one = source(topic, schema={"body": "string"})
    units = read(one, one.plan(after=None))
    assert ids(units) == sent
    assert column(units, "body") == [None, None]


def test_an_avro_schema_travels_to_where_its_file_is_not(kafka: KafkaCluster, tmp_path: Path) -> None:
    schema = {"type": "record", "name": "T", "fields": [{"name": "n", "type": "int"}]}
    file = tmp_path / "t.avsc"
    file.write_text(json.dumps(schema))
    topic = kafka.topic()
    topic.produce([b"\x02", b"\x04", b"\x02\x02"])
    one = source(topic, value={"avro": str(file)})
    plan = one.plan(after=None)
    sent = pickle.dumps(one)
    file.unlink()
    units = read(pickle.loads(sent), plan)
    assert column(units, "n") == [1, 2]
    assert errors(units) == [("InvalidAvro", 2)]


def test_a_unit_counts_when_its_records_were_produced(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    topic.produce(rows(5), timestamp_ms=int(time.time() * 1000) - HOUR_MS)
    topic.produce(rows(1), timestamp_ms=-1)
    one = source(topic)
    (unit,) = read(one, one.plan(after=None))
    assert sum(unit.stats.values()) == 5


# --- the group's offsets -----------------------------------------------------------------------------------------


def test_acknowledging_sets_the_groups_offsets(kafka: KafkaCluster) -> None:
    topic = kafka.topic(partitions=2)
    topic.produce(rows(5))
    group = f"group-{topic.name}"
    one = source(topic, group=group)
    one.acknowledge(one.plan(after=None).end)
    found = kafka.consumer_groups(group)
    assert {key: (at.current, at.lag) for key, at in found.items()} == {
        (topic.name, 0): (5, 0),
        (topic.name, 1): (0, 0),
    }


def test_topics_that_are_gone_or_others_by_now_are_not_acknowledged(kafka: KafkaCluster) -> None:
    stays, gone, other = kafka.topic(), kafka.topic(), kafka.topic()
    for topic in (stays, gone, other):
        topic.produce(rows(5))
    group = f"group-{stays.name}"
    one = source(stays, gone, other, group=group)
    end = one.plan(after=None).end
    for topic in (gone, other):
        topic.delete()
    other.create()
    one.acknowledge(end)
    assert list(kafka.consumer_groups(group)) == [(stays.name, 0)]


def test_a_unit_survives_the_ledger(kafka: KafkaCluster) -> None:
    topic = kafka.topic()
    sent = topic.produce(rows(25))
    one = source(topic)
    plan = one.plan(after=None)
    units = [UnitSpec(range=json.loads(json.dumps(dict(unit.range)))) for unit in plan.units]
    assert ids(read(one, replace(plan, units=units))) == sent

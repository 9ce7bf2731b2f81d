"""`raybatch run` from topics, again and again; and `raybatch retry` of what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle import Output, live_wrong
from raylets import Cluster
from servers.kafka import GroupOffset, KafkaCluster
from servers.kafka_project import KafkaProject

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

REFUSE = """
    import json, os

    def refuse(row):
        state = json.load(open(os.path.join(os.path.dirname(__file__), "state.json")))
        if row["n"] in state["refused"]:
            raise ValueError("unwanted")
        return row
"""


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaCluster, cluster: Cluster) -> Iterator[KafkaProject]:
    made = KafkaProject(tmp_path / "project", kafka=kafka, env=cluster.env)
    yield made
    made.close()


def test_each_run_takes_what_is_new_and_leaves_the_group_at_its_end(project: KafkaProject) -> None:
    topic = project.kafka.topic(partitions=2)
    ids = topic.produce([{"n": n} for n in range(25)]) + topic.produce([{"n": -1}] * 5, partition=1)
    project.read(topic)
    done = project.complete()
    assert done.document["rows"] == {"in": 30, "ok": 30, "error": 0, "dropped": 0}
    project.check(ids)
    new = topic.produce([{"n": n} for n in range(8)], partition=1)
    done = project.complete()
    assert (done.document["epoch"], done.document["rows"]["in"]) == (1, 8)
    project.check([*ids, *new])
    assert "nothing to do" in project.complete().err
    assert project.kafka.consumer_groups(project.name) == {
        (topic.name, 0): GroupOffset(current=25, end=25, lag=0),
        (topic.name, 1): GroupOffset(current=13, end=13, lag=0),
    }


def test_error_rows_are_retried_by_their_offsets_and_what_is_lost_stays_so(project: KafkaProject) -> None:
    topic = project.kafka.topic()
    ids = topic.produce([{"n": n} for n in range(20)])
    ids += topic.produce([b"nonsense"])
    topic.delete_records(before=5)
    project.functions(REFUSE)
    project.state(refused=[12, 19])
    stages = [{"type": "python", "name": "refuse", "function": "functions:refuse"}]
    start = {topic.name: {"0": 2}}
    project.read(topic, stages=stages, run={"max_error_rate": 1}, start=start, on_lost_range="skip")
    project.complete()
    assert project.errors() == {
        "RecordsLost": [ids[2]],
        "ValueError": [ids[12], ids[19]],
        "InvalidJSON": [ids[20]],
    }
    project.check([ids[2], *ids[5:]])

    project.state(refused=[])
    # What is lost later is no row of the choice: it cannot be read again, and stays an error row
    topic.delete_records(before=13)
    retried = project.complete(command="retry").document["retry"]
    assert {name: retried[name] for name in ("taken", "ok", "error")} == {"taken": 4, "ok": 1, "error": 3}
    again = {
        (row["_row"], row["type"]) for row in Output(project.output).errors() if row["_row"] in (2, 12, 20)
    }
    assert again == {
        (2, "RecordsLost"),
        (12, "ValueError"),
        (12, "InputChanged"),
        (20, "InvalidJSON"),
    }
    expected = [ids[2], *ids[5:]]
    assert live_wrong(project.output, Counter(expected)) == []

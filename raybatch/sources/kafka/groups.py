"""The group's offsets: set to where the last commit ends, so that dashboards and scalers see the true lag."""

from __future__ import annotations

from collections.abc import Iterable

from raybatch.sources.base import JSON, Acknowledged
from raybatch.sources.kafka.client import Client, Partition, Topic, TopicGoneError, open_client
from raybatch.sources.kafka.config import KafkaConfig
from raybatch.sources.kafka.position import Position

# Nothing depends on these offsets, so nobody waits for brokers that are away for longer; the next run repairs them
_TIMEOUT_S = 30.0


def acknowledge(config: KafkaConfig, end: JSON) -> None:
    """Set the group's offsets to `end`, but those of topics that are not there any more, or are others."""
    if config.group is None:
        return
    with _opened(config) as client:
        client.set_group_offsets(config.group, _wanted(client, end))


def acknowledged(config: KafkaConfig, end: JSON) -> Acknowledged | None:
    """The group's offsets beside `end`; None without a group."""
    group = config.group
    if group is None:
        return None
    with _opened(config) as client:
        wanted, there = _wanted(client, end), client.group_offsets(group)
    behind: list[str] = []
    ahead: list[str] = []
    for partition, offset in sorted(wanted.items()):
        found = there.get(partition)
        if found != offset:
            told = "no offset" if found is None else f"offset {found}"
            line = f"group {group}, {partition}: {told}, and the last commit ends at {offset}"
            (ahead if found is not None and found > offset else behind).append(line)
    return Acknowledged(compared=len(wanted), behind=behind, ahead=ahead)


def _opened(config: KafkaConfig) -> Client:
    timeout_s = min(config.read_timeout_s, _TIMEOUT_S)
    return open_client(config.model_copy(update={"read_timeout_s": timeout_s}))


def _wanted(client: Client, end: JSON) -> dict[Partition, int]:
    position = Position.of(end)
    same = {t.name for t in _existing(client, position.topics) if t.id == position.topics[t.name].id}
    return {partition: offset for partition, offset in position.offsets().items() if partition.topic in same}


def _existing(client: Client, names: Iterable[str]) -> list[Topic]:
    """Those of the topics that are there."""
    left = list(names)
    while left:
        try:
            return client.topics(names=left)
        except TopicGoneError as error:
            left.remove(error.topic)
    return []

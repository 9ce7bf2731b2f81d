"""What a client cannot do, told to whoever runs the pipeline: what it means, and what is possible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raybatch.errors import CorruptInputError, InputChangedError, RaybatchError, SourceError, StoreError
from raybatch.sources.kafka.client import (
    AccessDeniedError,
    BrokersUnreachableError,
    ClientError,
    CorruptRecordsError,
    RangeLostError,
    RangeMissingError,
    TopicGoneError,
)
from raybatch.sources.kafka.ranges import Range, lost_message


@contextmanager
def planning() -> Iterator[None]:
    """Turns a client's errors into those of a plan; see `raybatch.sources.base.Source`."""
    try:
        yield
    except TopicGoneError as error:
        raise SourceError(
            f"{error}. Create it, or leave it out of source.topics; if it was deleted just now, run again"
        ) from error
    except ClientError as error:
        raise _either(error, "Nothing was planned") from error


@contextmanager
def reading(one: Range, *, key: str) -> Iterator[None]:
    """Turns a client's errors into those of reading the unit `key`, which is `one`."""
    try:
        yield
    except ClientError as error:
        raise _of_reading(error, one, where=f"unit {key}, {one.partition}") from error


def _of_reading(error: ClientError, one: Range, *, where: str) -> RaybatchError:
    if isinstance(error, RangeLostError):
        lost = lost_message([(one.partition, error.start, min(error.first, one.end))])
        return InputChangedError(f"{where}: {lost}")
    if isinstance(error, RangeMissingError):
        return InputChangedError(
            f"{where}: was planned up to offset {one.end}, and its log ends at {error.end} now: records were taken"
            " back (as by the election of a leader that was behind). Nothing of this epoch is committed yet. Choose:"
            " restore them and run again; or write to another output (sink.path), which takes everything anew"
        )
    if isinstance(error, TopicGoneError):
        return InputChangedError(
            f"{where}: {error}; it was planned as {one.topic_id}. Nothing of this epoch is committed yet, and what was"
            " planned of the old topic cannot be read any more. Write to another output (sink.path), which takes"
            " everything anew"
        )
    if isinstance(error, CorruptRecordsError):
        return CorruptInputError(
            f"{where}: {error}. Nothing of this epoch is committed yet. If another replica holds good records, make"
            " it the leader and run again; or write to another output (sink.path), and start behind them"
        )
    return _either(error, f"{where}: what is published stays")


def _either(error: ClientError, so_far: str) -> RaybatchError:
    if isinstance(error, AccessDeniedError):
        return SourceError(
            f"{error}. {so_far}. See source.security, and the rights of whoever it names: to read and describe the"
            " topics, and to read the group"
        )
    if isinstance(error, BrokersUnreachableError):
        return StoreError(
            f"{error}. {so_far}; run again once they answer (source.brokers says where they are, source.security how"
            " they are reached, source.read_timeout_s how long to wait)"
        )
    return StoreError(f"{error}. {so_far}; run again")

"""Whether what is planned will still be there when it is read: a note, for nobody knows how long a run takes."""

from __future__ import annotations

from collections.abc import Mapping

from raybatch.sources.kafka.client import Retention

_UNITS = (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000))


def expiring(oldest_ms: Mapping[str, int], retention: Mapping[str, Retention], *, now_ms: int) -> list[str]:
    """A line for each topic whose oldest planned record is past half of its retention.

    `oldest_ms` is when that record was made, in milliseconds since 1970; a limit in bytes tells no time.
    """
    notes = []
    for topic, made_ms in sorted(oldest_ms.items()):
        keeps = retention.get(topic)
        if keeps is None or keeps.retention_ms is None:
            continue
        left_ms = made_ms + keeps.retention_ms - now_ms
        if left_ms < keeps.retention_ms / 2:
            when = f"in about {_about(left_ms)}" if left_ms > 0 else "at any moment"
            notes.append(
                f"topic '{topic}': its oldest records here may be deleted {when} (retention.ms); if they are not read"
                " by then, source.on_lost_range says what happens"
            )
    return notes


def _about(ms: int) -> str:
    name, unit = next(((name, unit) for name, unit in _UNITS if ms >= 2 * unit), _UNITS[-1])
    return f"{max(1, round(ms / unit))} {name}"

"""Every named failpoint is one that a test with real processes dies at."""

from __future__ import annotations

from test_driver_killed import BEFORE_FINISHING, FINISHING
from test_worker_killed import DEATHS, READING

from raybatch.ledger.failpoints import FAILPOINTS


def test_a_process_is_killed_at_every_named_failpoint() -> None:
    died_at = [
        *BEFORE_FINISHING,
        *FINISHING,
        *READING,
        *(p for deaths in DEATHS.values() for p in deaths.split()),
    ]
    assert {point.partition("@")[0] for point in died_at} == set(FAILPOINTS)

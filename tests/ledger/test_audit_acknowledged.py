"""I7: what was told to the outside world is compared with the last commit."""

from __future__ import annotations

import json

from raybatch.ledger import keys
from raybatch.ledger.audit import AuditReport, Check, audit
from raybatch.sources.base import JSON, Acknowledged
from raybatch.store.memory import MemoryStore


def _i7(output: MemoryStore, told: Acknowledged | Exception | None) -> tuple[Check, AuditReport]:
    def acknowledged(end: JSON) -> Acknowledged | None:
        assert end == json.loads(output.read(keys.commit_key(1)))["end"]
        if isinstance(told, Exception):
            raise told
        return told

    report = audit(output, acknowledged=acknowledged)
    return next(check for check in report.checks if check.invariant == "I7"), report


def test_i7_what_was_told_beyond_the_last_commit(output: MemoryStore) -> None:
    check, report = _i7(output, Acknowledged(compared=3, ahead=["t/0: 7, and not 5", "t/1: 9, and not 5"]))
    assert (check.status, check.checked, check.violations) == ("failed", "3 group offsets", 2)
    assert check.first == "t/0: 7, and not 5"
    assert not report.ok


def test_i7_what_was_told_too_little_is_a_note(output: MemoryStore) -> None:
    check, report = _i7(output, Acknowledged(compared=1, behind=["t/0: 3, and not 5"]))
    assert (check.status, check.checked) == ("ok", "1 group offset")
    assert report.notes == ("t/0: 3, and not 5; the next run sets it",)


def test_i7_nobody_who_answers_is_no_violation(output: MemoryStore) -> None:
    check, report = _i7(output, OSError("nobody there"))
    assert (check.status, check.checked, report.ok) == ("not checked", "nobody there", True)


def test_i7_does_not_apply_to_a_source_that_tells_nobody(output: MemoryStore) -> None:
    assert _i7(output, None)[0].status == "not applicable"


def test_i7_a_commit_that_is_made_meanwhile_counts(output: MemoryStore) -> None:
    asked: list[JSON] = []
    last = keys.commit_key(1)
    made = output.objects.pop(last)

    def acknowledged(end: JSON) -> Acknowledged | None:
        asked.append(end)
        output.objects[last] = made
        return Acknowledged(compared=1, ahead=["t/0: 7, and not 5"] if len(asked) == 1 else [])

    (check,) = [check for check in audit(output, acknowledged=acknowledged).checks if check.invariant == "I7"]
    assert (check.status, len(asked)) == ("ok", 2)

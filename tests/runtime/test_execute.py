"""When a run gives up, and with which error."""

from __future__ import annotations

import pytest
import ray.exceptions
from made import record

from raybatch.errors import EngineLoadError, RaybatchError, TooManyErrorsError
from raybatch.runtime.execute import _known, refuse_too_many_errors
from raybatch.runtime.progress import Tally


def tally(*, error: int, ok: int, expected: int | None = 100) -> Tally:
    counted = Tally(planned=10, expected_rows=expected, expected_bytes=0)
    errors = {"InvalidJSON": error - 1, "TooLong": 1} if error > 1 else {"TooLong": error}
    counted.add(record(ok=ok, error=error, errors=errors), unit_bytes=0, resumed=False)
    return counted


@pytest.mark.parametrize(
    ("error", "ok", "complete"),
    [
        (10, 0, False),  # of what has come all failed, of what will come it may be the only tenth
        (10, 90, True),
        (0, 0, True),
    ],
)
def test_as_many_error_rows_as_allowed_are_no_error(error: int, ok: int, complete: bool) -> None:
    refuse_too_many_errors(tally(error=error, ok=ok), 0.1, complete=complete)


@pytest.mark.parametrize(
    ("error", "ok", "complete"),
    [
        (11, 0, False),  # even if all others succeed
        (11, 89, True),
        (2, 8, True),  # fewer rows came than were expected
    ],
)
def test_more_error_rows_than_allowed_are_an_error(error: int, ok: int, complete: bool) -> None:
    with pytest.raises(TooManyErrorsError):
        refuse_too_many_errors(tally(error=error, ok=ok), 0.1, complete=complete)


def test_while_nobody_knows_how_many_rows_will_come_none_are_too_many() -> None:
    counted = tally(error=5, ok=0, expected=None)
    refuse_too_many_errors(counted, 0.0, complete=False)
    with pytest.raises(TooManyErrorsError):
        refuse_too_many_errors(counted, 0.0, complete=True)


def test_no_error_row_is_allowed_at_a_rate_of_zero_and_all_are_at_one() -> None:
    refuse_too_many_errors(tally(error=100, ok=0), 1.0, complete=True)
    with pytest.raises(TooManyErrorsError):
        refuse_too_many_errors(tally(error=1, ok=99), 0.0, complete=False)


def test_the_message_counts_the_kinds_and_says_what_can_be_done() -> None:
    with pytest.raises(TooManyErrorsError) as caught:
        refuse_too_many_errors(tally(error=20, ok=80), 0.1, complete=True)
    message = str(caught.value)
    assert "20 of 100 rows are error rows (InvalidJSON 19, TooLong 1)" in message
    assert "run.max_error_rate is 0.1" in message
    assert "--set run.max_error_rate=" in message


def in_a_task(error: Exception) -> Exception:
    """`error` as it arrives from a Ray task, and is met while Ray handles the end of its stream."""
    arrived = ray.exceptions.RayTaskError("f", "Traceback", error, proctitle="f", pid=1, ip="127.0.0.1")
    try:
        try:
            raise EOFError
        except EOFError:
            raise arrived.as_instanceof_cause()  # noqa: B904  # as Ray does
    except Exception as found:
        return found


def test_an_error_of_ours_is_found_inside_rays() -> None:
    error = EngineLoadError("no such model")
    assert _known(in_a_task(error)) is error


def test_an_error_of_ours_keeps_its_type_through_two_tasks() -> None:
    found = _known(in_a_task(in_a_task(EngineLoadError("no such model"))))
    assert (type(found), str(found)) == (EngineLoadError, "no such model")


def test_of_a_foreign_error_the_user_sees_its_type_and_words() -> None:
    found = _known(in_a_task(PermissionError("/secret")))
    assert (type(found), str(found)) == (RaybatchError, "PermissionError: /secret")

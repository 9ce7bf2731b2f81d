"""What a person sees of a run: the live view, the plain lines, the table at the end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from a_run import LOG, PLANNING, WHY, engine, recorded, replica, snapshot
from raybatch.cli.live import LineView, LiveView, Terminal
from raybatch.cli.meter import Meter
from raybatch.cli.picture import duration, line, picture
from raybatch.cli.summary import data_query, print_failure, print_success
from raybatch.errors import EngineLoadError, InterruptedRunError, LostRaceError, TooManyErrorsError
from raybatch.runtime.progress import RunReport, Snapshot


def drawn(what: RenderableType, *, width: int = 80) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False
    )
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def view(meter: Meter, *, width: int = 80) -> str:
    return drawn(picture(meter, pipeline="tickets", log=LOG), width=width)


def report(**changes: object) -> RunReport:
    fields: dict[str, object] = {
        "run_id": "20260712-120341-3fa2b1",
        "pipeline": "tickets",
        "epoch": 0,
        "epochs": 1,
        "committed": True,
        "units": {"planned": 40, "published": 40, "resumed": 3},
        "rows": {"in": 40_960, "ok": 40_950, "error": 3, "dropped": 7},
        "errors": {"PromptTooLong": 2, "InvalidJSON": 1},
        "tokens": {"prompt": 1_234_567, "cached": 0, "generated": 98_765},
        "seconds": {"total": 83.12, "model_load": 17.3, "summarise": 123.4},
        "engines": [],
        "output": "/data/out",
    }
    return RunReport(**(fields | changes))  # type: ignore[arg-type]


def success(meter: Meter | None = None, *, width: int = 80, **changes: object) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    print_success(console, report(**changes), meter or recorded(), log=LOG)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def failure(error: BaseException, meter: Meter) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None, highlight=False)
    print_failure(console, error, meter, pipeline="tickets", log=LOG)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_shows_all_that_matters_in_whole_words(width: int) -> None:
    shown = view(recorded(errors={"PromptTooLong": 3}), width=width)
    for part in (
        "tickets  running  epoch 0  1:05",
        "run 20260712-120341-3fa2b1",
        "30%  ~2:20 left",
        "12/40",
        "3 resumed",
        "12,288/40,960",
        "205 rows/s  10,000 tokens/s",
        "PromptTooLong 3",
        "vllm Qwen/Qwen3-8B",
        str(LOG),
    ):
        assert part in shown
    assert "…" not in shown


def all_phases() -> Iterator[Meter]:
    yield Meter()
    for state in ({"phase": "planning", **PLANNING}, {"phase": "starting", "published": 3}):
        meter = Meter()
        meter.add(snapshot(5, **state, engines=[engine(replica("pending", why=WHY))]))  # type: ignore[arg-type]
        yield meter
    many = {f"SomeRatherLongErrorType{i}": i for i in range(1, 9)}
    long_names = [
        engine(model="/home/somebody/models/" + "long-name-" * 9 + str(i), deaths=2) for i in range(3)
    ]
    yield recorded(errors=many, engines=long_names)
    yield recorded(phase="finalising", published=40)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_the_view_is_wider_than_the_terminal(width: int) -> None:
    lines = [text for meter in all_phases() for text in view(meter, width=width).splitlines()]
    assert max(map(len, lines)) <= width


def test_the_bar_says_100_percent_only_when_every_row_is_published() -> None:
    nearly = recorded(published=39, planned=40, rows_expected=39 * 1024 + 1)
    assert "99%" in view(nearly)
    assert "100%" in view(recorded(phase="finalising", published=40))


def test_before_there_is_a_plan_the_view_has_no_bar() -> None:
    meter = Meter()
    meter.add(snapshot(1, phase="planning", **PLANNING, rows_expected=None))
    assert view(meter).splitlines()[0].startswith("tickets  planning  epoch 0  0:01")
    assert "%" not in view(meter)


def test_an_engine_shows_how_many_replicas_are_in_which_state_and_for_how_long() -> None:
    replicas = replica(), replica(), replica("loading", seconds=72), replica("pending", seconds=9)
    header, row = view(recorded(engines=[engine(*replicas)])).splitlines()[4:6]
    assert header.split() == ["engine", "ready", "loading", "pending", "in", "flight", "load"]
    assert row.split() == ["vllm", "Qwen/Qwen3-8B", "2", "1", "1:12", "1", "0:09", "2,048", "0:17"]


def test_an_engine_without_any_ready_replica_says_what_it_waits_for() -> None:
    meter = Meter()
    meter.add(snapshot(30, phase="starting", engines=[engine(replica("pending", why=WHY))]))
    assert "a replica asks for 2 GPU (more than any node has)" in view(meter, width=120)


def test_only_the_three_most_frequent_error_types_are_named() -> None:
    shown = view(recorded(errors={"A": 1, "B": 5, "C": 3, "D": 2, "E": 1}))
    assert "B 5, C 3, D 2, 2 more types" in shown


def test_text_from_outside_is_not_taken_for_markup() -> None:
    shown = view(recorded(errors={"[bold]Type[/nothing]": 1}, engines=[engine(model="[red]model")]))
    assert "[bold]Type[/nothing] 1" in shown
    assert "[red]model" in shown


def test_notes_and_reasons_stand_whole_above_the_live_view() -> None:
    console = Terminal(file=io.StringIO(), width=80, height=25, force_terminal=True, color_system=None)
    note = "epoch 0: 3 of 40 units are published already, " + "and a word more " * 5 + "until here"
    live = LiveView(console, pipeline="tickets", log=LOG)
    with live.shown():
        live.note(note)
        live.update(snapshot(30, phase="starting", engines=[engine(replica("pending", why=WHY))]))
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    assert f"{note}\n" in written
    assert f"{WHY}\n" in written


def test_the_live_view_leaves_the_cursor_visible_in_case_it_is_killed() -> None:
    console = Terminal(file=io.StringIO(), width=80, height=25, force_terminal=True, color_system=None)
    live = LiveView(console, pipeline="tickets", log=LOG)
    with live.shown():
        assert isinstance(console.file, io.StringIO)
        seen = console.file.getvalue()
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


# -- plain lines ---------------------------------------------------------------------------------------------


def plain(*snapshots: Snapshot, interval_s: float = 10) -> list[str]:
    stream = io.StringIO()
    lines = LineView(stream, log=LOG, interval_s=interval_s, clock=lambda: "12:03:41")
    for seen in snapshots:
        lines.update(seen)
    return stream.getvalue().splitlines()


def test_a_plain_line_tells_all() -> None:
    meter = recorded(errors={"PromptTooLong": 3})
    assert line(meter) == (
        "running  units 12/40 (3 resumed)  rows 12,288/40,960  205 rows/s  10,000 tok/s  engines 1 ready"
        "  errors 3 (PromptTooLong 3)  ~2:20 left"
    )


def test_a_plain_line_names_the_epoch_of_a_run_that_goes_on() -> None:
    assert line(recorded(epoch=7, epochs=5)).startswith("epoch 7  running  units 12/40")


def test_plain_lines_come_at_intervals_and_at_each_change_of_phase_but_not_when_done() -> None:
    running = [snapshot(20 + second) for second in range(25)]
    done = snapshot(50, phase="done")
    lines = plain(snapshot(1, phase="planning"), snapshot(2, phase="starting"), *running, done)
    assert [text.split()[1] for text in lines] == ["planning", "starting", "running", "running", "running"]


def test_phases_that_come_again_with_each_epoch_do_not_make_lines() -> None:
    phases = ["starting", "running", "waiting"] * 5
    lines = plain(*(snapshot(second, phase=phase) for second, phase in enumerate(phases)), interval_s=100)
    assert [text.split()[1] for text in lines] == ["starting", "running", "waiting"]


def test_a_change_of_phase_names_the_log_file() -> None:
    first, second = plain(snapshot(1), snapshot(20))
    assert first.endswith(f"  log {LOG}")
    assert str(LOG) not in second


def test_a_reason_to_wait_is_printed_once_and_in_full() -> None:
    pending = [snapshot(s, engines=[engine(replica("pending", seconds=s, why=WHY))]) for s in range(1, 200)]
    text = "\n".join(plain(*pending))
    assert text.count(WHY) == 1


def test_a_start_that_is_merely_starting_gives_no_reasons() -> None:
    lines = plain(snapshot(5, engines=[engine(replica("pending", seconds=5, why=WHY))]))
    assert not any("waits for a place" in text for text in lines)


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away_does_not_disturb_the_run() -> None:
    lines = LineView(Broken(), log=LOG, interval_s=10)
    lines.note("nobody hears it")
    lines.update(snapshot())
    live = LiveView(Terminal(file=Broken(), width=80, force_terminal=True), pipeline="tickets", log=LOG)
    with live.shown():
        live.note("nobody hears it")
        live.update(snapshot())
    assert lines.meter.latest == live.meter.latest == snapshot()


# -- the end -------------------------------------------------------------------------------------------------


def test_the_table_at_the_end_counts_rows_units_tokens_and_seconds() -> None:
    words = " ".join(success().split())
    for part in (
        "tickets epoch 0 complete in 1:23 run 20260712-120341-3fa2b1",
        "rows 40,960 in 40,950 ok 3 error 7 dropped",
        "units 40 planned 40 published 3 resumed",
        "tokens 1,234,567 prompt 0 cached 98,765 generated",
        "seconds 83.1 total, 17.3 model load",
        "stages summarise 123.4 s",
        "PromptTooLong 2, InvalidJSON 1; the rows are in /data/out/errors",
        "output /data/out",
        f"log {LOG}",
    ):
        assert part in words


def test_speeds_at_the_end_leave_out_what_earlier_runs_published() -> None:
    rows = 40_960 - 3 * 1024
    assert f"{rows / 45:.0f} rows/s while running" in success()
    assert f"{rows / 83.12:.0f} rows/s overall" in success()


def test_the_table_of_a_run_over_several_epochs_says_how_many_and_how_late_rows_were() -> None:
    shown = success(epoch=12, epochs=3, latency_s={"p50": 12.34, "p99": 1234.5})
    assert "tickets  3 epochs, up to 12  complete in 1:23" in shown
    assert "latency 12.3 s (p50), 1,234.5 s (p99) from produced to visible\n" in shown


def test_paths_at_the_end_are_not_broken_over_lines() -> None:
    output = "/data/" + "deep/" * 30 + "out"
    assert f"'{output}/data/*.parquet' LIMIT 10;\n" in success(output=output)


def test_the_query_at_the_end_reads_the_dataset(tmp_path: Path) -> None:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    output = tmp_path / "it's [here]*"
    (output / "data").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1, 2]}), output / "data" / "00000000-00000.parquet")
    assert duckdb.sql(data_query(f"{output}/")).fetchall() == [(1,), (2,)]


def test_a_run_with_no_new_input_says_that_there_is_nothing_to_do() -> None:
    none = {"planned": 0, "published": 0, "resumed": 0}
    rows = {"in": 0, "ok": 0, "error": 0, "dropped": 0}
    shown = success(units=none, rows=rows, errors={}, tokens={})
    assert "nothing to do: epoch 0 is complete, no new input" in shown
    assert "SELECT" in shown


def test_a_run_that_only_had_to_commit_says_that_nothing_was_redone() -> None:
    shown = success(units={"planned": 40, "published": 40, "resumed": 40})
    assert "nothing was redone: every unit was published already" in shown


def test_a_failure_shows_the_errors_own_words_and_how_to_go_on() -> None:
    words = "engine vllm Qwen/Qwen3-8B failed to load\n  root cause: ValueError: " + "long " * 30 + "end"
    shown = failure(EngineLoadError(words), recorded())
    assert words in shown
    assert "run it again to resume: 12 of 40 units are published\n" in shown
    assert str(LOG) in shown


def test_an_interruption_says_once_how_to_go_on() -> None:
    shown = failure(
        InterruptedRunError("interrupted; run it again to resume: what is published stays"), recorded()
    )
    assert shown.count("run it again to resume: 12 of 40 units are published") == shown.count("again") == 1


def test_a_run_over_several_epochs_that_ends_says_how_many_are_done() -> None:
    shown = " ".join(failure(InterruptedRunError("interrupted"), recorded(epoch=7, epochs=5)).split())
    assert "resume: 5 epochs are committed by this run; of epoch 7, 12 of 40 units are published" in shown


@pytest.mark.parametrize(
    "error", [LostRaceError("another run won"), TooManyErrorsError("too many error rows")]
)
def test_an_error_that_running_again_does_not_cure_only_says_what_is_published(error: Exception) -> None:
    shown = failure(error, recorded())
    assert "\n12 of 40 units are published\n" in shown
    assert "again" not in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (100_000, "27:46:40")],
)
def test_durations_read_as_clocks(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown

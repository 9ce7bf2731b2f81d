"""`raybatch audit`: check the invariants of exactly-once on what is stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from raybatch.cli.options import json_option, output_and_pipeline, pipeline_options

if TYPE_CHECKING:
    from raybatch.ledger.audit import AuditReport


@click.command()
@pipeline_options
@json_option
def audit(pipeline: str, profile: str | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Check that the output of PIPELINE holds every row exactly once.

    PIPELINE is a pipeline file, or the folder or URL of an output. Invariants I1 to I8 are checked on the
    stored plans, units, commits and Parquet files alone: every file is read, nothing is written, and Ray is not
    needed. Only group offsets (I7) are asked of Kafka's brokers, and not checked where they do not answer or
    nobody says who they are. Exits with 0 if all hold, with 1 if one does not.
    """
    from raybatch.ledger.audit import audit as check

    output, read = output_and_pipeline(pipeline, profile=profile, sets=sets)
    source = read.source.build(max_rows=1, max_bytes=1) if read else None  # of units of any size
    report = check(output, acknowledged=source.acknowledged if source else None)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    click.echo(_table(report), err=True)
    click.get_current_context().exit(0 if report.ok else 1)


def _table(report: AuditReport) -> str:
    whose = f"pipeline '{report.pipeline}', " if report.pipeline else ""
    width = max(len(check.claim) for check in report.checks)
    lines = [f"{report.path}: {whose}{report.epochs} committed epochs", ""]
    for check in report.checks:
        verdict = f"{check.claim:{width}}  {check.status:14}  {check.checked}"
        lines.append(f"  {check.invariant}  {verdict}".rstrip())
        if check.first is not None:
            more = f" (the first of {check.violations})" if check.violations > 1 else ""
            lines.append(f"      {check.first}{more}")
    lines += ["", *(f"  note: {note}" for note in report.notes), *([""] if report.notes else [])]
    failed = [check.invariant for check in report.checks if check.status == "failed"]
    lines.append(f"violated: {', '.join(failed)}" if failed else "every invariant holds")
    return "\n".join(lines)

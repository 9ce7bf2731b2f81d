"""`raybatch gc`: remove what crashes and lost races have left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from raybatch.cli.options import json_option, output_named, pipeline_options

if TYPE_CHECKING:
    from raybatch.ledger.gc import GarbageReport


@click.command()
@pipeline_options
@json_option
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def gc(pipeline: str, profile: str | None, sets: tuple[str, ...], as_json: bool, dry_run: bool) -> None:
    """Remove what nothing in the output of PIPELINE references, and nothing ever will.

    PIPELINE is a pipeline file, or the folder or URL of an output. Runs may be at work meanwhile: what goes is
    the parts of attempts at a unit that another attempt has published, and temporary files that are older than
    a day. What a plan, unit record or commit names stays, and so does everything that cannot be explained.
    """
    from raybatch.ledger.gc import collect_garbage

    report = collect_garbage(output_named(pipeline, profile=profile, sets=sets), dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    click.echo(_text(report), err=True)


def _text(report: GarbageReport) -> str:
    did = "would remove" if report.dry_run else "removed"
    counted = (
        (report.parts, "part of an attempt that lost", "parts of attempts that lost"),
        (report.leftovers, "leftover of a write", "leftovers of writes"),
    )
    what = [f"{count:,} {one if count == 1 else many}" for count, one, many in counted if count]
    said = f"{did} {' and '.join(what)} ({report.bytes:,} bytes)" if what else "no garbage"
    return "\n".join([f"{report.path}: {said}", *(f"  note: {note}" for note in report.notes)])

"""The `raybatch` command: finds the sub-command, runs it, and turns what is raised into a message and an
exit code."""

from __future__ import annotations

import importlib
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import click

from raybatch.errors import RaybatchError
from raybatch.nearest import did_you_mean
from raybatch.version import __version__

UNEXPECTED = 1
INTERRUPTED = 130


class Command(NamedTuple):
    """Where a sub-command is, and its line in `raybatch --help`, which so needs no import."""

    target: str
    help: str


COMMANDS = {
    "run": Command("raybatch.cli.run:run", "Run a pipeline; resumes what is unfinished."),
    "retry": Command("raybatch.cli.retry:retry", "Take error rows through the pipeline again."),
    "validate": Command("raybatch.cli.validate:validate", "Check a pipeline file without starting anything."),
    "audit": Command("raybatch.cli.audit:audit", "Check that what is stored holds every row exactly once."),
    "gc": Command("raybatch.cli.gc:gc", "Remove what crashes and lost races have left."),
    "schema": Command("raybatch.cli.schema:schema", "Print the JSON Schema of pipeline files, for editors."),
}


class LazyGroup(click.Group):
    """A group that imports a sub-command's module only when that sub-command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            known = f"; commands: {', '.join(COMMANDS)}"
            ctx.fail(f"no such command '{args[0]}'{did_you_mean(args[0], COMMANDS)}{known}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raybatch", message="%(prog)s %(version)s")
def cli() -> None:
    """Batch inference with every input row in the output exactly once.

    A pipeline is one YAML file: where rows come from, which models they pass through, and the Parquet
    dataset they end up in. Start with

    \b
        raybatch validate pipeline.yaml
        raybatch run pipeline.yaml

    A run that was interrupted or that failed is resumed by the same command.
    """


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run the command line `args` and return its exit code; every message goes to stderr."""
    try:
        code = cli.main(args=list(args), prog_name="raybatch", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except RaybatchError as error:
        _say(str(error))
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    # click turns Ctrl-C into Abort
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        blame = f"This is a fault in raybatch; the traceback is in {_saved_traceback()}"
        _say(f"{type(error).__name__}: {error}\n{blame}")
        return UNEXPECTED


def _say(message: str) -> None:
    click.echo(f"raybatch: {message}" if "\n" not in message else f"raybatch:\n{message}", err=True)


def _saved_traceback() -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="raybatch-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exc(file=file)
    return file.name


if __name__ == "__main__":
    main()

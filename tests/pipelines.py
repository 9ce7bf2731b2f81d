"""Small pipelines in a folder of their own, and `raybatch` as a process on them.

Most run on the simulated engine, by the stage type `simulated` of the plugin in tests/integration/plugin: a
prompt's answer is the prompt, reversed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PLUGIN = Path(__file__).parent / "integration" / "plugin"
MODEL = Path(__file__).parents[1] / "pipelines" / "normalise" / "model"
# Generous: these machines may be busy, and what hangs is ended by it all the same
DEADLINE_S = 240.0


def turn(**options: Any) -> dict[str, Any]:
    """A stage on the simulated engine; `engine` as in `raybatch.engines.simulated`."""
    base = {
        "type": "simulated",
        "name": "turn",
        "model": "org/none",
        "prompt": "{{ text }}",
        "output": "turned",
    }
    return base | options


def wait_until(condition: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """What `condition` gives, as soon as it is true."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {deadline_s:g} s in vain until {what}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished command. `document` is what it printed as JSON on stdout."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """`{"type", "message", "exit_code"}` of a run that failed."""
        return self.document["error"]

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


class Command:
    """A `raybatch` command that runs, in a session of its own, as a terminal gives it one."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        name: str,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raybatch.cli.main", *args],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                start_new_session=True,
                preexec_fn=before,
            )

    def wait(self, *, deadline_s: float = DEADLINE_S) -> Done:
        """Wait for its end; a command that does not end is killed, and a failure."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {deadline_s:g} s\n{self.err.read_text()}") from None
        return Done(code=code, out=self.out.read_text(), err=self.err.read_text())

    def kill(self) -> None:
        """SIGKILL to the driver alone, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def interrupt(self) -> None:
        """What Ctrl-C on a terminal does: SIGINT to every process of its foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)


@dataclass
class Project:
    """A folder with a pipeline file, its input below in/, its Python functions, and its output in out/."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.input.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def input(self) -> Path:
        return self.folder / "in"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def rows(self, count: int, *, file: str = "a.jsonl", **columns: Any) -> list[dict[str, Any]]:
        """Write a JSON Lines file of `count` rows: {"id", "text"}, and `columns` (a function of the id)."""
        made = {name: value if callable(value) else (lambda _, v=value: v) for name, value in columns.items()}
        rows = [
            {"id": f"{file}-{i}", "text": f"row {i} of {file}"} | {name: of(i) for name, of in made.items()}
            for i in range(count)
        ]
        self.lines(rows, file=file)
        return rows

    def lines(self, rows: Iterable[Any], *, file: str = "a.jsonl") -> Path:
        """Write values as JSON Lines."""
        path = self.input / file
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def write(self, *stages: Mapping[str, Any], **sections: Any) -> Path:
        """Write the pipeline file; `sections` replace `name`, `source`, `sink` and `run`."""
        document = {
            "name": "small",
            "source": {"type": "files", "path": "in/*.jsonl"},
            "stages": list(stages),
            "sink": {"type": "parquet", "path": "out"},
            "run": {"unit": {"max_rows": 10}},
        }
        self.file.write_text(yaml.safe_dump(document | sections, sort_keys=False))
        return self.file

    def functions(self, code: str) -> None:
        """Write functions.py, the module of the pipeline's Python functions."""
        (self.folder / "functions.py").write_text(textwrap.dedent(code))

    def state(self, **values: Any) -> None:
        """Write state.json beside functions.py: what functions may look up while the pipeline stays the same."""
        (self.folder / "state.json").write_text(json.dumps(values))

    def start(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        command: str = "run",
        before: Callable[[], None] | None = None,
    ) -> Command:
        """`raybatch run pipeline.yaml --json ARGS`, started; `before` is called in its process first."""
        environment = {
            **os.environ,
            # Where plugins are found; Ray's workers inherit it
            "PYTHONPATH": str(PLUGIN),
            "RAYBATCH_LOG_DIR": str(self.folder / "logs"),
            "RAY_ADDRESS": "",
            "RAYBATCH_FAILPOINT": "",
            **self.env,
            **(env or {}),
        }
        started = Command(
            [command, str(self.file), "--json", *args],
            env={name: value for name, value in environment.items() if value},
            folder=self.folder,
            name=f"command-{len(self.commands)}",
            before=before,
        )
        self.commands.append(started)
        return started

    def run(self, *args: str, **options: Any) -> Done:
        """`raybatch run`, to its end; options as of `start`."""
        return self.start(*args, **options).wait()

    def complete(self, *args: str, **options: Any) -> Done:
        """`raybatch run`, which must succeed."""
        done = self.run(*args, **options)
        assert done.code == 0, str(done)
        return done

    def published(self) -> list[str]:
        """The names of the unit records there are."""
        root = self.output / "_raybatch" / "units"
        return sorted(str(file.relative_to(root)) for file in root.rglob("*.json"))

    def close(self) -> None:
        """Kill what still runs."""
        for command in self.commands:
            if command.process.poll() is None:
                command.kill()

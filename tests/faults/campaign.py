"""One dataset that is brought to its end through a few epochs, with faults, and counted."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chaos_oracle
import psutil
from chaos_oracle import Outcome, Row

from oracle import Output
from pipelines import Command, Done, Project, turn
from raylets import Cluster

# A run that has not ended by then hangs: the longest wait is a minute, for a GCS that does not return
HANGS_S = 240.0
# Units that a run should have left to do where it is to be harmed amid the work; error rows, where those are retried
MUCH, FEW = 8, 10
UNFINISHED, ERRORS = "an unfinished epoch", "error rows"

# Of twelve rows two are dropped, two become two, and three fail, or one that was made from them, unless `mended`
# exists. `full`: the disk has no room as long as it exists. Files, so that the code stays what it was.
FUNCTIONS = """
    import os, resource, time

    class TooHot(Exception): ...
    class TooCold(Exception): ...

    def there(name):
        return os.path.exists(os.path.join(os.path.dirname(__file__), name))

    def sort(row):
        time.sleep(row["slow"])
        room = 2_000 if there("full") else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        n, mended = row["n"], there("mended")
        two = [row, row | {"text": row["text"] + " again"}]
        if n % 12 == 1 and not mended:
            raise TooHot(str(n))
        if n % 12 == 7 and not mended:
            raise TooCold(str(n))
        if n % 6 == 0 or n % 24 == 19:
            return None
        return two if n % 12 in (1, 2, 8) else row

    def check(row):
        if row["n"] % 12 == 2 and row["text"].endswith(" again") and not there("mended"):
            raise TooCold("the second of " + str(row["n"]))
        return row
"""
SORT = {"type": "python", "name": "sort", "function": "functions:sort"}
CHECK = {"type": "python", "name": "check", "function": "functions:check"}


class ViolationError(Exception):
    """The promise is broken, or a command ended as it must not."""


class Campaign:
    """A project in `folder`, and everything that is chosen at random about it."""

    def __init__(
        self, folder: Path, choose: random.Random, *, engine: bool, project: Project | None = None
    ) -> None:
        self.choose = choose
        self.project = project or Project(folder)
        self.folder = folder
        self.engine = engine
        self.on_cluster = choose.random() < 0.6
        self.partitioned = choose.random() < 0.4
        self.unit_rows = choose.randint(4, 8)
        self.cluster: Cluster | None = None
        self.runs: Counter[str] = Counter()  # commands, by how they ended
        self.files = self.rows = self.epochs = self.retried = self.collected = 0
        self.harms = 0  # times that something was really done to a run
        self.idle = True  # nothing that was begun is unfinished
        self.left = 0  # units of the unfinished epoch that are not published
        self.failed: list[Outcome] = []  # error rows that nobody took again, of committed epochs
        self.told: list[str] = []
        self._inputs: dict[Row, int] = {}
        self._started = time.monotonic()
        self._clusters = 0
        self._records: dict[str, str] = {}
        self._write()

    # -- the pipeline and its input ----------------------------------------------------------------------

    def source_of(self, path: Path) -> str:
        """How a run names an input file."""
        return str(path)

    def sink_path(self) -> str:
        """As the pipeline file says it."""
        return "out"

    def stored(self) -> Path:
        """A folder with the output as it is now."""
        return self.project.output

    def struck(self) -> Counter[str]:
        """What the store did wrong, by what it was."""
        return Counter()

    def add_input(self) -> int:
        """New files, which the next plan takes; gives the number of their rows."""
        before = self.rows
        for _ in range(self.choose.randint(1, 3)):
            count = self.choose.randint(50, 90)
            slow = self.choose.choice([0.03, 0.06, 0.1])
            name = f"{self.files:04d}.jsonl"
            rows = [
                {"n": n, "text": f"row {n} of {name}", "slow": slow, "lang": ("de", "en", "fr")[n % 3]}
                for n in range(count)
            ]
            self._count(self.put_input(rows, name))
            self.files += 1
            self.rows += count
        return self.rows - before

    def put_input(self, rows: Sequence[Mapping[str, Any]], name: str) -> Path:
        """Write a file that a run finds whole or not at all; gives the local copy."""
        return self.project.lines(rows, file=f"{name}.part").rename(self.project.input / name)

    def _count(self, path: Path) -> None:
        """Note the id of each row of an input file: the byte at which its line starts."""
        place = 0
        for line in path.read_bytes().splitlines(keepends=True):
            self._inputs[self.source_of(path), place] = json.loads(line)["n"]
            place += len(line)

    def mend(self, mended: bool) -> None:
        """Whether rows that are not in order are let through from now on."""
        flag = self.folder / "mended"
        if mended:
            flag.touch()
        else:
            flag.unlink(missing_ok=True)

    def _write(self) -> None:
        self.project.functions(FUNCTIONS)
        engine = turn(
            engine={"seconds_per_row": self.choose.choice([0.2, 0.5]), "slots": 8},
            replicas={"min": 1, "max": self.choose.randint(1, 2)},
            watchdog_s=2,
            slice_rows=self.choose.choice([2, 4]),
        )
        run = {
            "unit": {"max_rows": self.unit_rows},
            "in_flight_units": self.choose.randint(2, 4),
            "max_error_rate": 1,
            "grace_s": self.choose.choice([0.3, 3, 20]),
        }
        sink = {"type": "parquet", "path": self.sink_path()}
        if self.partitioned:
            sink["partition_by"] = ["lang"]
        self.project.write(SORT, *([engine] if self.engine else []), CHECK, run=run, sink=sink)

    # -- commands ----------------------------------------------------------------------------------------

    def start(
        self,
        *args: str,
        command: str = "run",
        env: Mapping[str, str] | None = None,
        own_ray: bool = False,
    ) -> Command:
        """Start a command, on the campaign's cluster or on a Ray of its own."""
        needs_ray = command in ("run", "retry") and self.on_cluster and not own_ray
        if needs_ray and self.cluster is None:
            folder = self.folder / f"cluster-{self._clusters}"
            folder.mkdir()
            self._clusters += 1
            self.cluster = Cluster(folder, head_cpus=2)
        there = self.cluster.env if self.cluster and needs_ray else {}
        started = self.project.start(*args, command=command, env={**there, **(env or {})})
        self.note(" ".join(["raybatch", command, *args, *(f"({k}={v})" for k, v in (env or {}).items())]))
        return started

    def end(self, command: Command, *allowed: int) -> Done:
        """Wait for a command, which must end, and with one of the `allowed` exit codes."""
        try:
            done = command.wait(deadline_s=HANGS_S)
        except AssertionError as error:
            raise ViolationError(f"it hangs: {error}") from None
        self.runs[str(done.code)] += 1
        self.note(f"it ended with {done.code}")
        if done.code not in allowed:
            raise ViolationError(f"exit code {done.code}, and {allowed} are allowed:\n{done}")
        return done

    def kill(self, command: Command) -> None:
        """SIGKILL to a driver, if it still runs."""
        if command.process.poll() is not None:
            self.end(command, 0, 4)
            return
        self.harm(f"the driver {command.process.pid} is killed")
        command.kill()
        self.runs["killed"] += 1

    def amid(self, command: Command) -> bool:
        """Wait for a random moment of a run, most often amid its units; False when it has ended before."""
        begun = len(self.project.published())
        if self.choose.random() < 0.2:
            until, wanted = time.monotonic() + self.choose.uniform(0.5, 6), begun + 10_000
        else:
            until, wanted = time.monotonic() + 60, begun + self.choose.randint(1, max(1, self.left // 3))
        while command.process.poll() is None and time.monotonic() < until:
            if len(self.project.published()) >= wanted:
                break
            time.sleep(0.02)
        return command.process.poll() is None

    def processes(self, command: Command, *, own_ray: bool = False) -> list[psutil.Process]:
        """Those that work for a run: below its driver, or on its cluster."""
        try:
            there = self.cluster is not None and not own_ray
            top = self.cluster.head.process.pid if self.cluster and there else command.process.pid
            return psutil.Process(top).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def lose_cluster(self) -> None:
        """Stop what is left of a cluster; the next run has a new one."""
        if self.cluster is not None:
            self.cluster.stop()
            self.cluster = None

    def harm(self, text: str) -> None:
        """Say that a fault has found something to harm."""
        self.harms += 1
        self.note(text)

    def note(self, text: str) -> None:
        """For whoever reads the folder of a violation."""
        self.told.append(f"{time.monotonic() - self._started:7.1f} s  {text}")
        (self.folder / "story.txt").write_text("\n".join(self.told) + "\n")

    # -- what a fault needs, and what must hold ------------------------------------------------------------

    def prepare(self, needs: str) -> None:
        """See that there is something to harm: much left to do, or error rows to retry."""
        if needs == ERRORS:
            self.mend(False)
            while len(self.failed) < FEW or not self.idle:
                if self.idle:
                    self.add_input()
                self.finish()
            return
        self.mend(self.choose.random() < 0.3)
        if not self.idle and self.left < MUCH:
            self.finish()
        if self.idle:
            self.left = self.add_input() // self.unit_rows

    def check_amid(self) -> None:
        """At any moment: readers see no row twice, and no published unit has changed or gone."""
        stored = self.stored()
        found = chaos_oracle.outcomes(stored)
        wrong = chaos_oracle.problems(found, self._inputs, complete=False)
        if wrong:
            raise ViolationError(f"{len(wrong)} times, such as: {wrong[0]}")
        output = Output(stored)
        records = output.units()
        changed = [name for name, attempt in self._records.items() if records.get(name) != attempt]
        if changed:
            raise ViolationError(f"published units have changed or are gone: {changed[:3]}")
        self._records = records
        plans, commits = output.plans(), output.commits()
        self.idle = len(plans) == len(commits)
        last = f"{len(commits):08d}/"
        done = sum(name.startswith(last) for name in records)
        self.left = 0 if self.idle else plans[-1]["units"]["count"] - done
        standing = chaos_oracle.standing(found)
        self.failed = [one for one in standing if one.kind == "errors" and one.epoch < len(commits)]
        self.epochs = len(commits)
        self.retried = sum(1 for plan in plans if plan.get("retry"))

    def finish(self) -> None:
        """Runs in peace until there is nothing left to do; then the oracle counts, and the audit must agree."""
        self.note("in peace")
        commits = -1
        while commits != (commits := len(Output(self.stored()).commits())):
            self.end(self.start(), 0)
        self.check_complete()

    def check_complete(self) -> None:
        """Every row is there once."""
        self.check_amid()
        stored = self.stored()
        wrong = chaos_oracle.problems(chaos_oracle.outcomes(stored), self._inputs, complete=True)
        if wrong:
            raise ViolationError(f"{len(wrong)} times, such as: {wrong[0]}")
        if self.engine:
            answers = [row for row in Output(stored).data() if row["turned"]["text"] != row["text"][::-1]]
            if answers:
                raise ViolationError(f"{len(answers)} wrong answers, such as {answers[0]}")
        self.end(self.start(command="audit"), 0)

    def close(self) -> None:
        self.lose_cluster()
        self.project.close()


def alive(found: psutil.Process) -> bool:
    """Whether it can still be told anything."""
    try:
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def titled(processes: Sequence[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those whose title has one of the words."""
    found = []
    for process in processes:
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in title for word in words):
            found.append(process)
    return found


def describe(campaign: Campaign) -> dict[str, Any]:
    """What it is, in a line."""
    return {
        "engine": campaign.engine,
        "cluster": campaign.on_cluster,
        "partitions": campaign.partitioned,
        "epochs": campaign.epochs,
        "rows": campaign.rows,
        "commands": sum(campaign.runs.values()),
    }

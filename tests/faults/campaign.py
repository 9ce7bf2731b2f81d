"""One dataset that is brought to its end through a few epochs, with faults, and then counted."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from oracle import Id, Output, twice, wrong
from pipelines import Command, Done, Project, turn
from raylets import Cluster

# A run that has not ended by then hangs: the longest wait is a minute, for a GCS that does not return
HANGS_S = 240.0

# Of six rows one is dropped, one fails, one becomes two. `full`: the disk has no room, as long as it exists
FUNCTIONS = """
    import os, resource, time

    FULL = os.path.join(os.path.dirname(__file__), "full")

    def sort(row):
        time.sleep(row["slow"])
        room = 2_000 if os.path.exists(FULL) else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        kind = row["n"] % 6
        if kind == 1:
            raise ValueError("unwanted")
        return {0: None, 2: [row, row]}.get(kind, row)
"""
SORT = {"type": "python", "function": "functions:sort"}


class ViolationError(Exception):
    """The promise is broken, or a command ended as it must not."""


class Campaign:
    """A project in `folder`, and everything that is chosen at random about it."""

    def __init__(self, folder: Path, choose: random.Random, *, project: Project | None = None) -> None:
        self.choose = choose
        self.project = project or Project(folder)
        self.folder = folder
        self.engine = choose.random() < 0.5
        self.on_cluster = choose.random() < 0.7
        self.cluster: Cluster | None = None
        self.runs: Counter[str] = Counter()  # commands, by how they ended
        self.files = 0
        self.rows = 0
        self.idle = True  # nothing that was begun is unfinished
        self.harms = 0  # times that something was really done to a run
        self.told: list[str] = []
        self._started = time.monotonic()
        self._clusters = 0
        self._records: dict[str, str] = {}
        self._write()

    # -- the pipeline and its input ----------------------------------------------------------------------

    @property
    def expected(self) -> Counter[Id]:
        """The id of every row that the output must hold, counted from the input files."""
        found: Counter[Id] = Counter()
        for path in self.project.input.glob("*.jsonl"):
            place, source = 0, self.source_of(path)
            for line in path.read_bytes().splitlines(keepends=True):
                children = ["0", "1"] if json.loads(line)["n"] % 6 == 2 else [None]
                found.update((source, place, child) for child in children)
                place += len(line)
        return found

    def source_of(self, path: Path) -> str:
        """How a run names an input file."""
        return str(path)

    def stored(self) -> Path:
        """A folder with the output as it is now."""
        return self.project.output

    def add_input(self) -> None:
        """New files, which the next plan takes."""
        for _ in range(self.choose.randint(1, 3)):
            count = self.choose.randint(5, 60)
            slow = self.choose.choice([0.01, 0.05, 0.1])
            name = f"{self.files:04d}.jsonl"
            rows = [{"n": n, "text": f"row {n} of {name}", "slow": slow} for n in range(count)]
            self.project.lines(rows, file=name)
            self.files += 1
            self.rows += count

    def _write(self) -> None:
        self.project.functions(FUNCTIONS)
        engine = turn(
            engine={"seconds_per_row": self.choose.choice([0.05, 0.3])},
            replicas={"min": 1, "max": self.choose.randint(1, 2)},
            watchdog_s=2,
            slice_rows=self.choose.choice([2, 16]),
        )
        run = {"unit": {"max_rows": self.choose.randint(3, 12)}, "max_error_rate": 1}
        self.project.write(SORT, *([engine] if self.engine else []), run=run)

    # -- commands ----------------------------------------------------------------------------------------

    def start(self, *args: str, command: str = "run", env: Mapping[str, str] | None = None) -> Command:
        """Start a command, on the campaign's cluster or on a Ray of its own."""
        if command == "run" and self.on_cluster and self.cluster is None:
            folder = self.folder / f"cluster-{self._clusters}"
            folder.mkdir()
            self._clusters += 1
            self.cluster = Cluster(folder, head_cpus=2)
        there = self.cluster.env if self.cluster else {}
        return self.project.start(*args, command=command, env={**there, **(env or {})})

    def end(self, command: Command, *allowed: int) -> Done:
        """Wait for a command, which must end, and with one of the `allowed` exit codes."""
        try:
            done = command.wait(deadline_s=HANGS_S)
        except AssertionError as error:
            raise ViolationError(f"it hangs: {error}") from None
        self.runs[str(done.code)] += 1
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
        """Wait for a random moment of a run; False when it has ended before."""
        until = time.monotonic() + self.choose.uniform(0, 12)
        wanted = len(self.project.published()) + self.choose.randint(1, 3)
        by_units = self.choose.random() < 0.7
        while command.process.poll() is None and time.monotonic() < until:
            if by_units and len(self.project.published()) >= wanted:
                break
            time.sleep(0.02)
        return command.process.poll() is None

    def processes(self, command: Command) -> list[psutil.Process]:
        """Those that work for a run: below its driver, or on its cluster."""
        try:
            top = self.cluster.head.process.pid if self.cluster else command.process.pid
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

    # -- what must hold ----------------------------------------------------------------------------------

    def check_amid(self) -> None:
        """At any moment: readers see no row twice, and no published unit has changed or gone."""
        stored = self.stored()
        seen = twice(stored)
        if seen:
            raise ViolationError(f"readers see {len(seen)} rows twice, such as {seen[0]}")
        records = Output(stored).units()
        changed = [name for name, attempt in self._records.items() if records.get(name) != attempt]
        if changed:
            raise ViolationError(f"published units have changed or are gone: {changed[:3]}")
        self._records = records
        self.idle = len(Output(stored).plans()) == len(Output(stored).commits())

    def finish(self) -> None:
        """Runs in peace until there is nothing left to do; then the oracle counts, and the audit must agree."""
        commits = -1
        while commits != (commits := len(Output(self.stored()).commits())):
            self.end(self.start(), 0)
        self.check_amid()
        stored = self.stored()
        found = wrong(stored, self.expected)
        if found:
            raise ViolationError("; ".join(found))
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


def titled(processes: list[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those whose title or program name has one of the words."""
    found = []
    for process in processes:
        try:
            title = " ".join([process.name(), *process.cmdline()])
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
        "rows": campaign.rows,
        "runs": sum(campaign.runs.values()),
    }

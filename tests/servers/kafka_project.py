"""A pipeline from Kafka topics into a folder, and what must be there afterwards."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oracle import Id, Output, wrong
from pipelines import Done, Project, wait_until
from servers.kafka import KafkaCluster
from servers.topics import Topic

# Units wait, once they are read, until somebody opens the gate; then what is left is read
GATE = """
    import pathlib, time

    HERE = pathlib.Path(__file__).parent

    def wait(rows):
        name = f"{rows['partition'][0]}-{rows['offset'][0]}" if len(rows) else "empty"
        (HERE / "begun" / name).touch()
        end = time.monotonic() + 200
        while not (HERE / "open").exists():
            assert time.monotonic() < end, "nobody has opened the gate"
            time.sleep(0.02)
        return rows
"""
WAIT = {"type": "python", "function": "functions:wait", "mode": "batch"}


@dataclass
class KafkaProject(Project):
    """See `Project`. Its output is complete when it holds `produced`, and is asked by two judges."""

    kafka: KafkaCluster = field(kw_only=True)
    # Also the group: that of other tests is none of ours
    name: str = field(default_factory=lambda: f"small-{uuid.uuid4().hex[:8]}", kw_only=True)

    def read(
        self,
        *topics: Topic,
        stages: Sequence[Mapping[str, Any]] = (),
        run: Mapping[str, Any] | None = None,
        **source: Any,
    ) -> None:
        """Write a pipeline of `topics`, in units of 10 offsets; `source` are more of the source's options.

        The stage `WAIT` needs its columns `partition` and `offset`.
        """
        said = {
            "type": "kafka",
            "brokers": self.kafka.addresses,
            "topics": [topic.name for topic in topics],
            # A reader that waits for what never comes, or for a broker that never does, fails by it
            "read_timeout_s": 60,
        }
        run = {"unit": {"max_rows": 10}, **(run or {})}
        if WAIT in stages:
            self.functions(GATE)
            (self.folder / "begun").mkdir(exist_ok=True)
        self.write(*stages, name=self.name, source=said | source, run=run)

    def begun(self) -> set[str]:
        """`partition-offset` of the first row of each unit that waits, or has waited, at the gate."""
        return {file.name for file in (self.folder / "begun").iterdir()}

    def open_gate(self) -> None:
        """Let units pass."""
        (self.folder / "open").touch()

    def check(self, expected: Iterable[Id]) -> None:
        """Every id of `expected` is there once, and no other; and the audit finds nothing wrong."""
        assert wrong(self.output, Counter(expected)) == []
        audit = self.run(command="audit")
        assert audit.code == 0, str(audit)

    def dies(self, *, at: str) -> Done:
        """Run until the failpoint `at`."""
        done = self.run(env={"RAYBATCH_FAILPOINT": at})
        assert done.code == -9, str(done)
        return done

    def wait_until_begun(self, count: int) -> set[str]:
        """The units at the gate, as soon as there are `count`."""
        wait_until(lambda: len(self.begun()) >= count, what=f"{count} units have been read")
        return self.begun()

    def errors(self) -> dict[str, list[Id]]:
        """The ids of error rows, by type."""
        found: dict[str, list[Id]] = {}
        for row in Output(self.output).errors():
            found.setdefault(row["type"], []).append((row["_source"], row["_row"], row["_child"]))
        return {kind: sorted(ids) for kind, ids in found.items()}

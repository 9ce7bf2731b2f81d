"""Run a continuous pipeline from Kafka at a steady rate for MINUTES, and say how it went.

    python tests/faults/continuous_half_hour.py [--minutes 30] [--rate 20] [--every 10] [--engine vllm|simulated]
                                                [--out DIR]

starts a broker and the run, writes --rate records each second to a topic, and every ten seconds prints the epochs
that are committed and the memory of the run's driver. Then it stops writing, and waits for the run to end by itself.

It exits 1 unless every record is there once, by the broker's answers to the producer; the audit agrees; the group
has no lag; the engine was loaded once; p50 and p99 of the latency, which it works out itself from the producer's
times and the commits', are those that the run reports; p99 of what was written after the first commit, when the engine
was there, is at most two epochs and the work (--patience); and the driver's memory in the last quarter of the time is
at most a tenth above that in the second quarter.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NORMALISE = ROOT / "pipelines" / "normalise"
sys.path[:0] = [str(HERE), str(HERE.parent), str(NORMALISE)]

import raybatch  # noqa: E402
from oracle import Id, Output, wrong  # noqa: E402
from pipelines import Command, Project, turn  # noqa: E402
from servers.kafka import KafkaCluster  # noqa: E402
from servers.topics import Topic  # noqa: E402
from task import cases  # noqa: E402

PARTITIONS = 4
TICK_S = 0.2
LOOK_S = 10.0
MIB = 1 << 20
SLACK_S = 15.0  # an engine's work on a few hundred rows, and the commit


@dataclass
class Written:
    """What the broker has taken: each record's id and the producer's time, in milliseconds."""

    times: dict[Id, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


def main() -> int:
    options = arguments()
    shutil.rmtree(options.out, ignore_errors=True)
    with KafkaCluster(options.out / "kafka") as cluster:
        topic = cluster.topic("steady", partitions=PARTITIONS)
        project = prepare(options, cluster)
        command = project.start()
        written = Written()
        producing = threading.Thread(target=lambda: produce(topic, options.rate, written))
        producing.start()
        try:
            memory = watch(project, command, written, minutes=options.minutes)
        finally:
            written.over.set()
            producing.join()
        done = command.wait(deadline_s=600)
        sys.stderr.write(done.err[-2000:])
        if written.error or done.code:
            say(f"exit code {done.code}, producer: {written.error}")
            return 1
        lag = sum(one.lag or 0 for one in cluster.consumer_groups("steady").values())
    problems = judge(options, project, written, done.document, memory, lag=lag)
    say("\n".join(problems) or "all is as it should be")
    return 1 if problems else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20, help="records per second")
    parser.add_argument("--every", type=float, default=10, help="run.epoch.every_s")
    parser.add_argument("--patience", type=float, default=SLACK_S, help="seconds of work, for the latency")
    parser.add_argument("--engine", choices=["vllm", "simulated"], default="vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "half-hour", help="emptied first")
    return parser.parse_args()


def prepare(options: argparse.Namespace, cluster: KafkaCluster) -> Project:
    """A pipeline that ends when nothing has come for three epochs."""
    project = Project(options.out.resolve())
    iso = {
        "type": "generate",
        "name": "iso",
        "model": str(NORMALISE / "model"),
        "engine": {"dtype": "bfloat16", "max_model_len": 256, "enforce_eager": True},
        "prompt": "{{ text }} =>",
        "sampling": {"temperature": 0, "max_tokens": 24},
        "output": "iso",
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    project.write(
        iso if options.engine == "vllm" else turn(engine={"seconds_per_row": 0.05}),
        name="steady",
        source={"type": "kafka", "brokers": cluster.addresses, "topics": ["steady"]},
        run={
            "mode": "continuous",
            "epoch": {"every_s": options.every},
            "idle_exit_s": 3 * options.every,
            "report_interval_s": 60,
        },
    )
    return project


def produce(topic: Topic, rate: float, written: Written) -> None:
    """Write at a steady rate until told that it is over."""
    try:
        producer = topic.cluster.producer()
        rows = cases(count=10**9, seed=5, split="held_out")
        started, sent = time.monotonic(), 0
        while not written.over.wait(TICK_S):
            due = int((time.monotonic() - started) * rate)
            times = []
            for number, case in enumerate(itertools.islice(rows, due - sent)):
                times.append(int(time.time() * 1000))
                partition = (sent + number) % PARTITIONS
                producer.send(topic.name, asdict(case), partition=partition, timestamp_ms=times[-1])
            sent = due
            written.times.update(zip(producer.flush(), times, strict=True))
        producer.close()
    except BaseException as error:
        written.error = error


def watch(project: Project, command: Command, written: Written, *, minutes: float) -> list[float]:
    """Look at the run every ten seconds; the driver's memory (MiB) at each look, from the first commit on."""
    driver, found = psutil.Process(command.process.pid), list[float]()
    started = time.monotonic()
    while time.monotonic() < started + 60 * minutes:
        time.sleep(LOOK_S)
        if command.process.poll() is not None or written.error:
            break
        epochs = len(Output(project.output).commits())
        memory = driver.memory_info().rss / MIB
        found += [memory] if epochs else []
        passed = time.monotonic() - started
        say(f"{passed:6.0f} s  {len(written.times):7,} written  {epochs:4} epochs  driver {memory:,.0f} MiB")
    return found


def judge(
    options: argparse.Namespace,
    project: Project,
    written: Written,
    document: dict[str, Any],
    memory: list[float],
    *,
    lag: int,
) -> list[str]:
    """What is not as it should be, after printing what was found."""
    report = raybatch.audit(str(project.output))
    problems = wrong(project.output, Counter(written.times.keys()))
    problems += [f"audit: {check.first}" for check in report.checks if check.status == "failed"]
    told, own, steady = document["latency_s"], *latencies(project, written)
    (engine,) = document["engines"]
    say(f"{document['epochs']} epochs, {document['rows']['in']:,} rows, lag {lag}")
    say(f"latency: told {told}, by our own count {own}; once the engine was there {steady}")
    say(f"engine: loaded in {engine['load_s']:.1f} s, {engine['rows']:,} rows since then")
    if engine["rows"] != len(written.times) or engine["replaced"]:
        problems.append("the engine was loaded more than once")
    problems += [f"{name} is {own[name]}" for name in told if abs(told[name] / own[name] - 1) > 0.15]
    usual = 2 * options.every + options.patience
    if steady["p99"] > usual:
        problems.append(f"p99 is beyond two epochs and the work, {usual:.0f} s")
    problems += [f"the group lags by {lag}"] if lag else []
    return problems + growth(memory)


def latencies(project: Project, written: Written) -> tuple[dict[str, float], dict[str, float]]:
    """From the producer's time to the commit's: of all rows, and of those written after the first commit."""
    committed = {
        commit["epoch"]: datetime.fromisoformat(commit["created_at"]).timestamp() * 1000
        for commit in Output(project.output).commits()
    }
    times = [(written.times[row], committed[epoch]) for epoch, _, row in Output(project.output).outcomes()]
    return shares(times), shares([time for time in times if time[0] > committed[0]])


def shares(times: list[tuple[int, float]]) -> dict[str, float]:
    late = sorted((visible - produced) / 1000 for produced, visible in times)
    return {"p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "most": late[-1]}


def growth(memory: list[float]) -> list[str]:
    """The driver's memory over time, and a word if it grows."""
    quarter = len(memory) // 4
    if not quarter:
        return ["too short to tell how memory grows"]
    quarters = [statistics.fmean(memory[n * quarter : (n + 1) * quarter]) for n in range(4)]
    say("driver's memory by quarters: " + ", ".join(f"{one:,.0f} MiB" for one in quarters))
    grew = quarters[3] > 1.1 * quarters[1]
    return [f"memory grew from {quarters[1]:,.0f} to {quarters[3]:,.0f} MiB"] if grew else []


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

"""Kill `raybatch run` with SIGKILL at random moments, twenty times over, then let it finish, and count the rows.

    python tests/faults/kill_twenty_times.py [--times 20] [--seed N]

By hand, because it takes some ten minutes: a real vLLM engine is loaded each time. Imports nothing of raybatch; what
is right is decided by tests/oracle.py, and by pipelines/normalise/check.py for the answers.
"""

from __future__ import annotations

import argparse
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "out" / "kill"
NORMALISE = ROOT / "pipelines" / "normalise"
LONGEST_S = 50.0  # long enough, on two cores, for some kills to come when the engine works


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def command() -> list[str]:
    sets = [f"source.path={WORK}/input/*.jsonl", f"sink.path={WORK}/output", "run.unit.max_rows=100"]
    options = [part for text in sets for part in ("--set", text)]
    return [
        str(Path(sys.executable).with_name("raybatch")),
        "run",
        str(NORMALISE / "pipeline.yaml"),
        *options,
    ]


def published() -> int:
    return len(list(WORK.glob("output/_raybatch/units/*/*.json")))


def kill_once(after_s: float) -> str:
    """Start a run, SIGKILL its driver `after_s` seconds later; says what happened."""
    with (WORK / "log").open("ab") as log:
        driver = subprocess.Popen(command(), stdout=log, stderr=log)
        try:
            driver.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            return f"killed after {after_s:4.1f} s, {published()} units published"
    return f"ended by itself with {driver.returncode} before {after_s:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    say(f"seed {arguments.seed}")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    made = ["make_input.py", "--count", "20000", "--files", "4", "--out", str(WORK / "input")]
    subprocess.run([sys.executable, str(NORMALISE / made[0]), *made[1:]], check=True)
    for number in range(1, arguments.times + 1):
        say(f"{number:3} {kill_once(draw.uniform(0.5, LONGEST_S))}")
    started = time.monotonic()
    last = subprocess.run(command(), check=False).returncode
    say(f"the last run ended with {last} after {time.monotonic() - started:.0f} s")
    inputs = sorted(str(path) for path in (WORK / "input").glob("*.jsonl"))
    rows = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "oracle.py"), str(WORK / "output"), *inputs], check=False
    )
    answers = subprocess.run([sys.executable, str(NORMALISE / "check.py"), str(WORK / "output")], check=False)
    return int(any((last, rows.returncode, answers.returncode)))


if __name__ == "__main__":
    sys.exit(main())

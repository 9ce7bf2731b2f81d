"""Kill `raybatch run` with SIGKILL at random moments, twenty times over, then finish it, and count its rows.

    python tests/faults/kill_twenty_times.py [--engine vllm|simulated] [--times 20] [--seed N] [--out DIR]

`vllm` is the pipeline in pipelines/normalise, whose answers are checked too; it takes some ten minutes, most
of them vLLM's loading. After each kill no process and no shared memory may be left. Exits 1 when anything is
wrong; the same seed kills at the same places as far as the machine lets it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from family import AGENTS, Family  # noqa: E402

from oracle import Output, input_ids, twice, wrong  # noqa: E402
from pipelines import Command, Project, turn  # noqa: E402

NORMALISE = ROOT / "pipelines" / "normalise"
UNIT = 32
ROWS = 16_000


def main() -> int:
    options = arguments()
    choose = random.Random(options.seed)
    say(f"seed {options.seed}, output below {options.out}")
    project, family = prepare(options), Family()
    project.env = family.env
    for kill in range(1, options.times + 1):
        before = Output(project.output).units()
        lived, phase = start_and_kill(project, family, choose)
        now = Output(project.output).units()
        say(f"kill {kill}: after {lived:.1f} s, {phase}; {len(now)} units are published")
        family.wait_until_gone(but=AGENTS)
        if twice(project.output) or not before.items() <= now.items():
            say("a unit was published twice, or is gone")
            return 1
    done = project.run()
    sys.stderr.write(done.err)
    found = wrong(project.output, input_ids(project.input.glob("*.jsonl")))
    say("\n".join(found) or f"all {ROWS} rows are there once, after {options.times} kills")
    family.wait_until_gone()
    return 1 if found or done.code or wrong_answers(options, project) else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--engine", choices=["vllm", "simulated"], default="vllm")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "kill20", help="emptied first")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> Project:
    """The input, and a pipeline file that reads it."""
    shutil.rmtree(options.out, ignore_errors=True)
    project = Project(options.out.resolve())
    script = [sys.executable, str(NORMALISE / "make_input.py")]
    subprocess.run([*script, "--count", str(ROWS), "--files", "4", "--out", str(project.input)], check=True)
    if options.engine == "simulated":
        project.write(turn(engine={"seconds_per_row": 0.5}), run={"unit": {"max_rows": UNIT}})
        return project
    text = (NORMALISE / "pipeline.yaml").read_text()
    text = text.replace("../../out/normalise/input", "in").replace("../../out/normalise/output", "out")
    text = text.replace("./model", str(NORMALISE / "model"))
    project.file.write_text(text + f"run:\n  unit: {{max_rows: {UNIT}}}\n")
    return project


def start_and_kill(project: Project, family: Family, choose: random.Random) -> tuple[float, str]:
    """Start the run and kill it: one time in four while it starts, else amid its work."""
    before, started = len(project.published()), time.monotonic()
    early = choose.random() < 0.25
    wanted, patience = choose.randrange(1, 20), choose.uniform(0, 15 if early else 0.3)
    command = project.start()
    while not early and len(project.published()) < before + wanted:
        must_run(command)
        time.sleep(0.01)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        must_run(command)
        time.sleep(0.01)
    family.look(command)
    command.kill()
    return time.monotonic() - started, "as it started" if early else "amid its work"


def must_run(command: Command) -> None:
    if command.process.poll() is not None:
        raise SystemExit(f"it ended before it could be killed:\n{command.wait()}")


def wrong_answers(options: argparse.Namespace, project: Project) -> bool:
    if options.engine == "simulated":
        rows = Output(project.output).data()
        return any(row["turned"]["text"] != row["text"][::-1] for row in rows)
    check = subprocess.run([sys.executable, str(NORMALISE / "check.py"), str(project.output)], check=False)
    return check.returncode != 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

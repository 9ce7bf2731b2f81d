"""Start two `raybatch run` of one pipeline on S3 together, fifty times, and count the rows each time.

    python tests/faults/two_drivers_fifty_times.py [--times 50] [--server minio|versitygw] [--seed N] [--out DIR]

Some ten minutes. Each time: one plan, one commit, exit codes 0 and 4 (or 0 twice, when the second found it done),
and every row once. Exits 1 at the first time that it is otherwise.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import races  # noqa: E402

from servers.project import S3Project  # noqa: E402
from servers.s3 import LAUNCHERS, S3Server  # noqa: E402


def main() -> int:
    options = arguments()
    choose = random.Random(options.seed)
    say(f"seed {options.seed}, on {options.server}, below {options.out}")
    shutil.rmtree(options.out, ignore_errors=True)
    server = S3Server(options.server, options.out / "server")
    seen: Counter[str] = Counter()
    try:
        for number in range(1, options.times + 1):
            project = S3Project(options.out / str(number), bucket=server.bucket())
            races.write(project)
            done = races.race(project, choose)
            codes = " and ".join(str(code) for code in sorted(one.code for one in done))
            seen[codes] += 1
            found = races.faults(project, done)
            say(f"{number}: exit codes {codes}; " + ("\n".join(found) or "every row is there once"))
            if found:
                return 1
    finally:
        server.stop()
    say(f"{options.times} times two drivers: " + ", ".join(f"{n} with {codes}" for codes, n in seen.items()))
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--server", choices=sorted(LAUNCHERS), default="minio")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "two-drivers", help="emptied first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

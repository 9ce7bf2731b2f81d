"""Write held-out cases as JSON Lines files: `{"id", "text", "answer"}`.

    python pipelines/normalise/make_input.py --count 10000 --out DIR --files 4

The same arguments write the same bytes. The rows are spread evenly over `part-00000.jsonl`,
`part-00001.jsonl`, …; a file of that name is replaced if it differs, other files in DIR stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

from task import Case, cases


def line_of(case: Case) -> str:
    return json.dumps(dataclasses.asdict(case), ensure_ascii=False) + "\n"


def write_files(*, count: int, seed: int, files: int, out: Path) -> None:
    """Consecutive cases go to the same file; the first `count % files` files hold one row more."""
    out.mkdir(parents=True, exist_ok=True)
    rest = cases(count=count, seed=seed, split="held_out")
    for number in range(files):
        size = count // files + (number < count % files)
        lines = map(line_of, itertools.islice(rest, size))
        write_if_changed(out / f"part-{number:05d}.jsonl", "".join(lines))


def write_if_changed(path: Path, text: str) -> None:
    """A file that was rewritten would be another input for a pipeline that has read it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--count", type=int, default=10_000, help="rows in all files together")
    parser.add_argument("--files", type=int, default=4)
    # Training evaluates on held-out cases of its own seed, 1; these are others.
    parser.add_argument("--seed", type=int, default=2, help="another seed draws other held-out cases")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    arguments = parser.parse_args()
    if arguments.count < 0 or arguments.files < 1:
        parser.error(f"--count must be >= 0 and --files >= 1, not {arguments.count} and {arguments.files}")
    write_files(**vars(arguments))


if __name__ == "__main__":
    main()

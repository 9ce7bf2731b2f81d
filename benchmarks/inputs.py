"""The inputs of benchmarks: made once, from fixed seeds, below `.cache/bench` of this checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "bench"

MEAN_TOKENS, MOST_TOKENS, SIGMA = 16, 128, 0.9
CASES_PER_PROMPT = 3  # 17 to 33 words together, for most

FILES = 8
BODY_BYTES = 1_000
GROUP_ROWS = 62_500
_POOL_BYTES = 16 << 20  # far beyond the window in which zstd finds repetitions at its default level


def prompts(rows: int) -> Path:
    """JSON Lines `{"id", "text", "sampling"}`: texts of some 25 words, and the tokens to generate.

    `sampling` is JSON text, `{"max_tokens": n}` with n from a lognormal distribution: most are short, a few
    are eight times as long as the mean.
    """
    return _made(CACHE / f"prompts-{rows}", lambda folder: _write_prompts(folder, rows)) / "prompts.jsonl"


def kilobytes(rows: int, *, group_rows: int = GROUP_ROWS) -> Path:
    """A folder of Parquet files with rows of 1 KB: an int64 `id`, and 1,000 bytes of text, `body`."""
    name = f"kilobytes-{rows}-{group_rows}"
    return _made(CACHE / name, lambda folder: _write_kilobytes(folder, rows, group_rows))


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"  making {folder.relative_to(ROOT)}", file=sys.stderr)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            make(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_prompts(folder: Path, rows: int) -> None:
    script = ROOT / "pipelines" / "normalise" / "make_input.py"
    count = str(rows * CASES_PER_PROMPT)
    command = [sys.executable, str(script), "--count", count, "--files", "1", "--out", str(folder)]
    subprocess.run(command, check=True)
    [made] = folder.glob("*.jsonl")
    texts = [json.loads(line)["text"] for line in made.read_text(encoding="utf-8").splitlines()]
    made.unlink()
    mu = np.log(MEAN_TOKENS) - SIGMA**2 / 2
    drawn = np.random.default_rng(4).lognormal(mu, SIGMA, rows)
    tokens = drawn.round().clip(1, MOST_TOKENS).astype(int).tolist()
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as file:
        for row in range(rows):
            text = "; ".join(texts[row * CASES_PER_PROMPT : (row + 1) * CASES_PER_PROMPT])
            sampling = json.dumps({"max_tokens": tokens[row]})
            file.write(json.dumps({"id": row, "text": text, "sampling": sampling}) + "\n")


def _write_kilobytes(folder: Path, rows: int, group_rows: int) -> None:
    generator = np.random.default_rng(8)
    pool = words(generator)
    for number, part in enumerate(np.array_split(np.arange(rows, dtype=np.int64), FILES)):
        table = pa.table({"id": part, "body": _bodies(generator, pool, len(part))})
        file = folder / f"part-{number:05d}.parquet"
        pq.write_table(table, file, row_group_size=group_rows, compression="zstd")


def words(generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Words of 2 to 10 letters, common ones more often, with a blank between them."""
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgk", dtype=np.uint8)
    words = [
        bytes(generator.choice(letters, size=length)) for length in generator.integers(2, 11, size=20_000)
    ]
    chosen = generator.zipf(1.3, size=_POOL_BYTES // 4) % len(words)
    text = b" ".join(words[i] for i in chosen.tolist())
    return np.frombuffer(text[:_POOL_BYTES], dtype=np.uint8)


def _bodies(
    generator: np.random.Generator, pool: np.ndarray[Any, np.dtype[np.uint8]], count: int
) -> pa.Array:
    starts = generator.integers(0, len(pool) - BODY_BYTES, size=count)
    data = np.empty((count, BODY_BYTES), dtype=np.uint8)
    for row, start in enumerate(starts.tolist()):
        data[row] = pool[start : start + BODY_BYTES]
    offsets = np.arange(count + 1, dtype=np.int32) * BODY_BYTES
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])

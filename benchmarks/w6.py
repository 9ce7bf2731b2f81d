"""W6: embeddings. raybatch's sentence-transformers engine against one `encode()` over everything, sorted.

    python -m benchmarks.w6 [--rows 4096] [--pairs 5] [--dtypes float32 bfloat16]

Both sides embed the same texts with all-MiniLM-L6-v2 in the same dtype, each in a process of its own that
keeps its model loaded. Two sets of texts: docstrings as they are, and the same words in texts of skewed
lengths. Ours takes messages of 1,024 rows, as many at a time as the engine says keep it busy; `encode` has
everything at once, with the batch size that was fastest in a trial before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import PAIRS, Ratio, Result, interleave, save, speed_ratio, table

ROWS = 4_096
DTYPES = ("float32", "bfloat16")
BATCH_SIZES = (16, 32, 64, 128)
TRIAL_ROWS = 512
WANTED = ">= 1.0"
PREPARE = Path(__file__).parents[1] / "pipelines" / "search" / "prepare.py"

_side: Any = None  # what this process measures; one process per side


class Ours:
    """The engine as an actor holds it, without Ray."""

    def __init__(self, model: str, dtype: str) -> None:
        from raybatch.engines.base import EngineSpec
        from raybatch.engines.sentence_transformers import load

        spec = EngineSpec(kind="sentence_transformers", model=model, args={"dtype": dtype})
        # Not asyncio.run: with Python 3.11 it prints, unseen, the result of what it ran, for seconds
        self.loop = asyncio.new_event_loop()
        self.engine = self.loop.run_until_complete(load(spec))
        self.stats: dict[str, float] = {}

    def embed(self, texts: list[str]) -> float:
        """Seconds, from requests to replies."""
        from raybatch.stages.embed import SLICE_ROWS

        at_a_time = asyncio.Semaphore(self.engine.describe()["max_in_flight"] // SLICE_ROWS)

        async def one(part: list[str]) -> list[Any]:
            async with at_a_time:
                return await self.engine.run([{"text": text} for text in part])

        async def all_parts() -> list[list[Any]]:
            parts = (texts[i : i + SLICE_ROWS] for i in range(0, len(texts), SLICE_ROWS))
            return list(await asyncio.gather(*map(one, parts)))

        started = time.perf_counter()
        replies = [reply for part in self.loop.run_until_complete(all_parts()) for reply in part]
        seconds = time.perf_counter() - started
        self.stats = {name: sum(r.stats[name] for r in replies) for name in replies[0].stats}
        return seconds

    def counters(self) -> dict[str, float]:
        """Of the last work: tokens, and padding's share on top of them."""
        tokens, padded = self.stats["prompt_tokens"], self.stats["padded_tokens"]
        return {"tokens": tokens, "padding": round(padded / tokens - 1, 4)}

    def configuration(self) -> dict[str, Any]:
        """What was run."""
        described = self.engine.describe()
        return {name: value for name, value in described.items() if name != "model"}


class Theirs:
    """`SentenceTransformer.encode` over everything, which sorts by length."""

    def __init__(self, model: str, dtype: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(
            model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}
        ).eval()
        self.dtype = dtype
        self.batch_size = 32

    def tune(self, texts: list[str]) -> None:
        """Keep the batch size that is fastest, best of two."""
        self._encode(texts, self.batch_size)  # warms up
        seconds = {size: min(self._encode(texts, size) for _ in range(2)) for size in BATCH_SIZES}
        self.batch_size = min(seconds, key=lambda size: seconds[size])

    def embed(self, texts: list[str]) -> float:
        """Seconds of one call."""
        return self._encode(texts, self.batch_size)

    def padding(self, texts: list[str]) -> float:
        """Padding's share on top of the tokens, in the batches that `encode` makes."""
        order = np.argsort([-len(text) for text in texts])
        found = self.model.tokenizer(texts, truncation=True, max_length=self.model.max_seq_length)
        lengths = np.array([len(ids) for ids in found["input_ids"]])[order]
        starts = range(0, len(lengths), self.batch_size)
        batches = [lengths[i : i + self.batch_size] for i in starts]
        return round(float(sum(len(b) * b.max() for b in batches) / lengths.sum() - 1), 4)

    def configuration(self) -> dict[str, Any]:
        """What was run."""
        import sentence_transformers
        import torch

        version = sentence_transformers.__version__
        threads = torch.get_num_threads()
        return {"version": version, "dtype": self.dtype, "batch_size": self.batch_size, "threads": threads}

    def _encode(self, texts: list[str], batch_size: int) -> float:
        started = time.perf_counter()
        self.model.encode(texts, batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - started


class Process:
    """A side in a process of its own, so that neither changes the other's threads."""

    def __init__(self, side: type[Ours] | type[Theirs], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_load, initargs=(side, arguments))

    def ask(self, method: str, *arguments: Any) -> Any:
        """The result of the side's method."""
        return self._pool.submit(_ask, method, arguments).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _load(side: Any, arguments: Sequence[Any]) -> None:
    global _side
    _side = side(*arguments)


def _ask(method: str, arguments: Sequence[Any]) -> Any:
    return getattr(_side, method)(*arguments)


def docstrings(folder: Path, rows: int) -> list[str]:
    """The search pipeline's texts, shuffled: as many as that."""
    command = [sys.executable, str(PREPARE), "--out", str(folder), "--rows", "12000"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = sorted((folder / "input").glob("*.jsonl"))
    texts = [json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines()]
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[i] for i in order[:rows]]


def skewed(texts: Sequence[str]) -> list[str]:
    """The same words in texts of other lengths: half below 15 words, one in fifty above 150."""
    words = [word for text in texts for word in text.split()]
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(15), 1.15, len(texts)).clip(1, 400).astype(int)
    starts = generator.integers(0, len(words) - 400, len(texts))
    return [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def run(
    *, rows: int = ROWS, pairs: int = PAIRS, dtypes: Sequence[str] = DTYPES, trial_rows: int = TRIAL_ROWS
) -> Result:
    """Measure every dtype with natural and with skewed lengths."""
    ratios: list[Ratio] = []
    counters: dict[str, float] = {}
    configurations: dict[str, Any] = {"rows": rows, "messages": "1,024 rows", "model": "all-MiniLM-L6-v2"}
    with tempfile.TemporaryDirectory() as name:
        natural = docstrings(Path(name), rows)
        model = str((Path(name) / "model").resolve())
    for dtype in dtypes:
        ours, theirs = Process(Ours, model, dtype), Process(Theirs, model, dtype)
        for kind, texts in {"docstrings": natural, "skewed lengths": skewed(natural)}.items():
            theirs.ask("tune", texts[:trial_rows])
            print(f"W6 {dtype}, {kind}: ours, encode()", file=sys.stderr)
            a, b = interleave(
                lambda o=ours, t=texts: o.ask("embed", t),
                lambda o=theirs, t=texts: o.ask("embed", t),
                pairs=pairs,
            )
            ratios.append(speed_ratio(a, b, peer=f"encode(), {dtype}, {kind}", wanted=WANTED))
            found = ours.ask("counters") | {"encode_padding": theirs.ask("padding", texts)}
            counters |= {f"{name} ({dtype}, {kind})": value for name, value in found.items()}
            configurations[f"{dtype}, {kind}"] = {
                "ours": ours.ask("configuration"),
                "encode": theirs.ask("configuration"),
            }
        ours.close()
        theirs.close()
    return Result(name="W6", ratios=ratios, counters=counters, configurations=configurations)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    arguments = parser.parse_args()
    result = run(**vars(arguments))
    print(f"{table([result])}\n{save(result)}")


if __name__ == "__main__":
    main()

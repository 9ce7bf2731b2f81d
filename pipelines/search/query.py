"""Search a finished run's vectors by meaning. Needs no raybatch: a reader sees Parquet files.

    python pipelines/search/query.py OUTPUT_DIR ["how do I ..." ...]

Prints the five rows nearest to each text by cosine similarity. Without a text, it asks questions whose
answers are known, and checks the dataset: every row once, the stored vectors those of the model, and a right
answer among the ten nearest rows of each question. Exits 1 when one of these fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SHOWN = 5
SEARCHED = 10
RECOMPUTED = 64
# Two vectors of a text may differ by the order in which numbers were added up; other texts are far below.
SAME = 0.999

# Question -> parts of names, one of which is among the nearest rows.
KNOWN = {
    "norm of a matrix": ("linalg.norm", ".norm"),
    "join two tables on a common column": ("DataFrame.merge", "DataFrame.join", "reshape.merge"),
    "shortest path between two nodes": ("networkx.algorithms.shortest_paths",),
    "send an e-mail": ("smtplib.", "email."),
    "read a compressed archive": ("zipfile.", "tarfile.", "gzip.", "bz2.", "lzma."),
    "fast Fourier transform": ("numpy.fft.", "scipy.fft."),
    "group similar points into clusters": ("sklearn.cluster.", "scipy.cluster."),
    "wait until another thread has finished": ("threading.", "concurrent.futures", "asyncio."),
}

Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A run's output; `vectors` has one row of length 1 per text."""

    ids: list[str]
    texts: list[str]
    vectors: Vectors

    def nearest(self, query: Vectors, *, count: int) -> list[tuple[float, int]]:
        """(cosine similarity, row) of the rows nearest to a vector of length 1, nearest first."""
        likeness = self.vectors @ query
        best = np.argsort(-likeness, kind="stable")[:count]
        return [(float(likeness[row]), int(row)) for row in best]


def unit_length(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read(data: Path) -> Dataset:
    """All Parquet files below `data`. Exits when there is none."""
    files = sorted(data.rglob("*.parquet"))
    # ParquetFile, not read_table: the latter would add columns for directory names such as `epoch=0`
    tables = [pq.ParquetFile(file).read(columns=["id", "text", "vector"]) for file in files]
    if not any(map(len, tables)):
        sys.exit(f"no rows in {data}: expected *.parquet with columns id, text, vector")
    vectors = [np.stack(table["vector"].to_numpy()) for table in tables if len(table)]
    return Dataset(
        ids=[name for table in tables for name in table["id"].to_pylist()],
        texts=[text for table in tables for text in table["text"].to_pylist()],
        vectors=unit_length(np.concatenate(vectors)),
    )


def check(dataset: Dataset, *, model: Any, source: Path) -> list[str]:
    """What is wrong with the dataset; nothing, if all is well."""
    wrong = []
    files = sorted(source.glob("*.jsonl"))
    given = [json.loads(line)["id"] for file in files for line in file.read_text("utf-8").splitlines()]
    if sorted(given) != sorted(dataset.ids):
        wrong.append(f"{len(given)} rows went in and {len(dataset.ids)} came out, or others than went in")
    step = max(1, len(dataset.ids) // RECOMPUTED)
    again = unit_length(model.encode(dataset.texts[::step]))
    likeness = (again * dataset.vectors[::step]).sum(axis=1)
    if likeness.min() < SAME:
        name = dataset.ids[int(likeness.argmin()) * step]
        wrong.append(f"the vector of {name} is not that of its text: similarity {likeness.min():.3f}")
    for question, answers in KNOWN.items():
        query = unit_length(model.encode([question]))[0]
        names = [dataset.ids[row] for _, row in dataset.nearest(query, count=SEARCHED)]
        if not any(answer in name for name in names for answer in answers):
            wrong.append(f"'{question}' finds none of {', '.join(answers)}, but {', '.join(names)}")
    return wrong


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("text", nargs="*", help="what to search for")
    parser.add_argument("--model", type=Path, help="default: the folder `model` beside OUTPUT_DIR")
    parser.add_argument("--input", type=Path, help="default: the folder `input` beside OUTPUT_DIR")
    arguments = parser.parse_args()
    output: Path = arguments.output_dir
    dataset = read(output / "data")

    # Only now: these imports take seconds
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = SentenceTransformer(str(arguments.model or output.parent / "model"), device="cpu")
    for question in arguments.text or KNOWN:
        print(f"\n{question}")
        query = unit_length(model.encode([question]))[0]
        for likeness, row in dataset.nearest(query, count=SHOWN):
            print(f"  {likeness:.3f}  {dataset.ids[row]}: {dataset.texts[row][:90]}")
    if arguments.text:
        return 0
    wrong = check(dataset, model=model, source=arguments.input or output.parent / "input")
    print(f"\n{len(dataset.ids)} rows, {dataset.vectors.shape[1]} dimensions")
    for finding in wrong:
        print(f"wrong: {finding}")
    print("wrong answers" if wrong else f"all {len(KNOWN)} questions found an answer that makes sense")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""W8: no model. A million rows of 1 KB through raybatch, and through bare Ray Data.

Both read the same Parquet files, run the same function on whole batches, and write Parquet with zstd. The
whole process counts, from nothing to its end; and, apart from it, the work once Ray runs.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import inputs
from benchmarks.measure import PAIRS, Result, interleave, speed_ratio
from benchmarks.processes import Ended, fresh, measure, rows_in

ROWS = 1_000_000
WANTED = ">= 0.9"
PIPELINE = str(Path(__file__).parent / "pipelines" / "rows.yaml")


def run(*, rows: int = ROWS, pairs: int = PAIRS) -> Result:
    """Measure both sides `pairs` times."""
    source = inputs.kilobytes(rows)
    ours: list[Ended] = []
    theirs: list[Ended] = []

    def raybatch() -> float:
        ours.append(run_ours(source, rows=rows))
        return ours[-1].seconds

    def ray_data() -> float:
        output = fresh("w8-ray-data")
        theirs.append(measure("benchmarks.peers.ray_data_rows", str(source), str(output)))
        _expect(rows, rows_in(list(output.glob("*.parquet"))))
        return theirs[-1].seconds

    ours_s, theirs_s = interleave(raybatch, ray_data, pairs=pairs)
    work = [e.said["ended_at"] - e.said["started_at"] for e in ours[1:]]
    their_work = [e.said["work_s"] for e in theirs[1:]]
    whole = speed_ratio(ours_s, theirs_s, peer="bare Ray Data, whole process", wanted=WANTED)
    started = speed_ratio(work, their_work, peer="bare Ray Data, Ray running", wanted=WANTED)
    report = ours[-1].said["report"]
    return Result(
        name="W8",
        ratios=[whole, started],
        counters={
            "rows": rows,
            "units": report["units"]["planned"],
            "rows per unit": rows / report["units"]["planned"],
            "finalise share of the work": round(report["seconds"]["finalise"] / work[-1], 3),
        },
        configurations={
            "rounds": pairs,
            "input": f"{inputs.FILES} Parquet files, row groups of {inputs.GROUP_ROWS} rows, zstd",
            "raybatch": "pipelines/rows.yaml, its defaults",
            "Ray Data": "read_parquet, map_batches(batch_size=None, pyarrow, zero_copy_batch), write_parquet",
        },
    )


def run_ours(
    source: Path, *, rows: int, sets: tuple[str, ...] = (), flags: tuple[str, ...] = (), module: str = "ours"
) -> Ended:
    """One run of `pipelines/rows.yaml`, Ray started before its clock. Fails if a row is missing."""
    output = fresh("rows")
    paths = (f"source.path={source}/*.parquet", f"sink.path={output}")
    options = [part for text in (*paths, *sets) for part in ("--set", text)]
    ended = measure(f"benchmarks.{module}", PIPELINE, *options, "--ray-first", *flags)
    found = ended.said["report"]["rows"]["ok"] if "report" in ended.said else ended.said["rows"]
    _expect(rows, found)
    return ended


def _expect(rows: int, found: int) -> None:
    if found != rows:
        raise RuntimeError(f"{found} rows came out of {rows}")

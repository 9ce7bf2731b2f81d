"""Bare Ray Data on the work of `pipelines/rows.yaml`: Parquet -> the same function -> Parquet with zstd.

    python -m benchmarks.peers.ray_data_rows INPUT OUTPUT

Prints one JSON line: `ray_s` to start Ray, `work_s` from the first call of Ray Data to the last file written.
"""

from __future__ import annotations

import argparse
import json
import logging
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    arguments = parser.parse_args()
    import ray
    import ray.data

    from benchmarks.pipelines.lengths import add_length

    started = time.perf_counter()
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    ray_s = time.perf_counter() - started
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    started = time.perf_counter()
    data = ray.data.read_parquet(arguments.input)
    # Whole blocks, as Arrow, not copied: what its performance guide says
    data = data.map_batches(add_length, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    data.write_parquet(arguments.output, compression="zstd")
    work_s = time.perf_counter() - started
    ray.shutdown()
    print(json.dumps({"ray_s": ray_s, "work_s": work_s}))


if __name__ == "__main__":
    main()

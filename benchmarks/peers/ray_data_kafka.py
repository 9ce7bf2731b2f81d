"""`ray.data.read_kafka` of a topic, its blocks in the object store; prints one JSON line: `rows`, `work_s`.

python -m benchmarks.peers.ray_data_kafka TOPIC
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    arguments = parser.parse_args()
    import ray
    import ray.data

    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    data = ray.data.read_kafka(arguments.topic, bootstrap_servers=os.environ["KAFKA_BROKERS"]).materialize()
    work_s = time.perf_counter() - started
    rows = data.count()
    ray.shutdown()
    print(json.dumps({"rows": rows, "work_s": work_s}))


if __name__ == "__main__":
    main()

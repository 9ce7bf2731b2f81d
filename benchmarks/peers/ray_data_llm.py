"""Ray Data LLM on the same work: read JSON Lines, generate, write Parquet with zstd. Prints one JSON line.

    python -m benchmarks.peers.ray_data_llm PROMPTS MODEL OUTPUT [--batch-size N] [--stages]

`--stages` keeps the processor's own tokenise and detokenise stages, its default; else vLLM does both.
On two CPUs it needs help to run at all: more logical CPUs than there are, for its actors, and a placement
group without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

LOGICAL_CPUS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompts")
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--concurrent-batches", type=int, default=8)
    parser.add_argument("--stages", action="store_true")
    arguments = parser.parse_args()
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    started = time.perf_counter()
    ray.init(address="local", num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False)
    ray_s = time.perf_counter() - started
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=arguments.model,
        engine_kwargs={"dtype": "bfloat16", "max_model_len": 256, "enforce_eager": True},
        placement_group_config={"bundles": [{"CPU": 1}]},
        batch_size=arguments.batch_size,
        max_concurrent_batches=arguments.concurrent_batches,
        concurrency=1,
        log_engine_metrics=arguments.stages,
        chat_template_stage=False,
        tokenize_stage=arguments.stages,
        detokenize_stage=arguments.stages,
    )
    processor = build_processor(config, preprocess=_request, postprocess=_answer)
    processor(ray.data.read_json(arguments.prompts, lines=True)).write_parquet(
        arguments.output, compression="zstd"
    )
    total_s = time.perf_counter() - started
    ray.shutdown()
    print(json.dumps({"ray_s": ray_s, "total_s": total_s}))


def _request(row: dict[str, Any]) -> dict[str, Any]:
    sampling = {"temperature": 0, "ignore_eos": True, **json.loads(row["sampling"])}
    return {
        "id": row["id"],
        "text": row["text"],
        "prompt": f"{row['text']} =>",
        "sampling_params": sampling,
    }


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "text": row["text"],
        "answer": row["generated_text"],
        "tokens": row["num_generated_tokens"],
    }


if __name__ == "__main__":
    main()

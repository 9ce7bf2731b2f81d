"""vLLM's own offline class: `LLM.generate` over all prompts in one call, nothing around it. One JSON line.

    python -m benchmarks.peers.bare_vllm PROMPTS MODEL

`generate_s` is that one call; `ready_at` (seconds since the epoch) is when the engine was up; `read_s` is how
long reading the input takes after it.
"""

from __future__ import annotations

import argparse
import json
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompts")
    parser.add_argument("model")
    arguments = parser.parse_args()
    from vllm import LLM, SamplingParams

    llm = LLM(model=arguments.model, dtype="bfloat16", max_model_len=256, enforce_eager=True)
    ready_at = time.time()
    with open(arguments.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    read_at = time.time()
    prompts = [f"{row['text']} =>" for row in rows]
    sampling = [SamplingParams(temperature=0, ignore_eos=True, **json.loads(row["sampling"])) for row in rows]
    started = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    generate_s = time.perf_counter() - started
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(
        json.dumps(
            {
                "rows": len(outputs),
                "generated_tokens": tokens,
                "generate_s": generate_s,
                "ready_at": ready_at,
                "read_s": read_at - ready_at,
            }
        )
    )


if __name__ == "__main__":
    main()

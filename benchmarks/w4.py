"""W4: outputs of heavy-tailed lengths. raybatch, a bare engine, and Ray Data LLM on the same prompts.

The engine's rate is that of `LLM.generate` over everything in one call, loading left out, against ours from
when the engine is ready to its last answer, with the next units being read and the last ones published
meanwhile. End to end is the whole process, loading included, of as much work and of less: the less there is,
the more starting and loading count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import inputs
from benchmarks.measure import Ratio, Result, interleave, speed_ratio, time_ratio
from benchmarks.processes import Ended, fresh, measure, rows_in

ROWS = 12_000
FEWER_ROWS = 5_000
PAIRS = 3  # each round loads three models; some minutes
PIPELINE = str(Path(__file__).parent / "pipelines" / "generate.yaml")
MODEL = str(inputs.ROOT / "pipelines" / "normalise" / "model")
BATCH_SIZE, CONCURRENT_BATCHES = 64, 8


def run(*, rows: int = ROWS, fewer: int = FEWER_ROWS, pairs: int = PAIRS) -> Result:
    """Measure all three sides `pairs` times, and two of them with fewer rows."""
    source = inputs.prompts(rows)
    few = inputs.prompts(fewer)
    ours: list[Ended] = []
    bare: list[Ended] = []

    def raybatch() -> float:
        ours.append(run_ours(source, rows=rows))
        return ours[-1].seconds

    def bare_vllm() -> float:
        bare.append(measure("benchmarks.peers.bare_vllm", str(source), MODEL))
        return bare[-1].seconds

    def ray_data_llm() -> float:
        return _ray_data_llm(source, rows=rows)

    ours_s, _, theirs_s = interleave(raybatch, bare_vllm, ray_data_llm, pairs=pairs)
    few_ours_s, few_theirs_s = interleave(
        lambda: run_ours(few, rows=fewer).seconds, lambda: _ray_data_llm(few, rows=fewer), pairs=pairs
    )
    said = [ended.said for ended in ours[1:]]
    _same_tokens(said[-1], bare[-1].said)
    generate = [ended.said["generate_s"] for ended in bare[1:]]
    busy = [s["last_reply_at"] - s["ready_at"] for s in said]
    published = [s["last_published_at"] - s["ready_at"] for s in said]
    return Result(
        name="W4",
        ratios=[
            speed_ratio(busy, generate, peer="LLM.generate, until the last answer", wanted=">= 0.95"),
            speed_ratio(published, generate, peer="LLM.generate, until all is published", wanted=">= 0.95"),
            _end_to_end(ours_s, theirs_s, rows=rows),
            _end_to_end(few_ours_s, few_theirs_s, rows=fewer),
        ],
        counters={
            "rows": rows,
            "generated_tokens": bare[-1].said["generated_tokens"],
            "units": said[-1]["report"]["units"]["planned"],
            "engine's share of the process": round(busy[-1] / ours_s[-1], 3),
        },
        configurations=_configurations(pairs, said[-1]["report"]["engines"][0]),
    )


def _end_to_end(ours: list[float], theirs: list[float], *, rows: int) -> Ratio:
    return time_ratio(ours, theirs, peer=f"Ray Data LLM tuned, whole process, {rows:,} rows", wanted="<= 0.6")


def run_ours(
    source: Path, *, rows: int, sets: tuple[str, ...] = (), flags: tuple[str, ...] = (), module: str = "ours"
) -> Ended:
    """One run of `pipelines/generate.yaml` by `benchmarks.<module>`. Fails if a row is missing."""
    output = fresh("generate")
    paths = (f"source.path={source}", f"sink.path={output}")
    options = [part for text in (*paths, *sets) for part in ("--set", text)]
    ended = measure(f"benchmarks.{module}", PIPELINE, *options, *flags)
    found = ended.said["report"]["rows"]["ok"] if "report" in ended.said else ended.said["rows"]
    if found != rows:
        raise RuntimeError(f"{found} rows came out of {rows}")
    return ended


def _ray_data_llm(source: Path, *, rows: int) -> float:
    output = fresh("w4-ray-data-llm")
    sizes = ("--batch-size", str(BATCH_SIZE), "--concurrent-batches", str(CONCURRENT_BATCHES))
    ended = measure("benchmarks.peers.ray_data_llm", str(source), MODEL, str(output), *sizes)
    if rows_in(list(output.glob("*.parquet"))) != rows:
        raise RuntimeError(f"Ray Data LLM did not write {rows} rows")
    return ended.seconds


def _same_tokens(ours: dict[str, Any], bare: dict[str, Any]) -> None:
    generated = ours["report"]["tokens"]["generated"]
    if generated != bare["generated_tokens"]:
        raise RuntimeError(f"not the same work: {generated} tokens and {bare['generated_tokens']}")


def _configurations(pairs: int, engine: dict[str, Any]) -> dict[str, Any]:
    return {
        "rounds": pairs,
        "engine of all sides": {
            name: engine[name] for name in ("version", "dtype", "max_model_len", "max_num_seqs")
        },
        "model": "pipelines/normalise/model, a Llama of a million parameters",
        "output tokens": f"lognormal, mean {inputs.MEAN_TOKENS}, at most {inputs.MOST_TOKENS}, seeded",
        "raybatch": "pipelines/generate.yaml, its defaults",
        "LLM.generate": "all prompts in one call; only the call is timed",
        "Ray Data LLM": {
            "batch_size": BATCH_SIZE,
            "max_concurrent_batches": CONCURRENT_BATCHES,
            "concurrency": 1,
            "tokenise and detokenise stages": "left to vLLM",
            "ray.init": "num_cpus=8, or its actors never get a place on two CPUs",
        },
    }

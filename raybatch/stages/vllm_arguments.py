"""vLLM engine arguments as a pipeline file gives them: by their own names, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Those that have a field of their own, and where.
_ELSEWHERE: Mapping[str, str] = {
    "model": "the stage's field `model`",
    "trust_remote_code": "the stage's field `trust_remote_code`",
    "hf_token": "env: {HF_TOKEN: '${env:HF_TOKEN}'}, since a secret is never written down",
}
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")
# Those that decide how fast and where, not what: a run may be resumed with others.
_NOT_IN_FINGERPRINT = frozenset(
    {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "distributed_executor_backend",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "num_gpu_blocks_override",
        "swap_space",
        "cpu_offload_gb",
        "block_size",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "enable_prefix_caching",
        "enable_chunked_prefill",
        "enforce_eager",
        "compilation_config",
        "async_scheduling",
        "max_loras",
        "max_cpu_loras",
        "max_parallel_loading_workers",
        "download_dir",
        "disable_log_stats",
        "enable_log_requests",
        "disable_custom_all_reduce",
        "load_format",
    }
)


def checked(args: Mapping[str, Any]) -> dict[str, Any]:
    """`args`, when they may stand in a pipeline file; raises `ValueError` with what is wrong.

    Whether vLLM knows a name is found out where vLLM is: when the engine is loaded.
    """
    for name in _ELSEWHERE.keys() & args.keys():
        raise ValueError(f"'{name}' does not belong here: use {_ELSEWHERE[name]}")
    for name in _PARALLEL:
        size = args.get(name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} is a positive number, got {size!r}")
    try:
        json.dumps(args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"engine arguments are plain JSON values: {error}") from None
    return dict(args)


def gpus(args: Mapping[str, Any]) -> int:
    """GPUs that one engine with these arguments takes."""
    sizes = [int(args.get(name, 1)) for name in _PARALLEL]
    return sizes[0] * sizes[1]


def deciding(args: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that decide the output, for a fingerprint."""
    return {name: value for name, value in args.items() if name not in _NOT_IN_FINGERPRINT}

"""An engine without a model: for tests of what surrounds engines, and for benchmarks that say "simulated".

`args`: `seconds_per_row` (each row's own time; rows do not wait for each other), `load_s`, `slots` (the rows
that keep it busy), and the texts that make it misbehave: `dies_on` kills its process, `hangs_on` never
answers, `refuses_on` fails that row. A text is found in a request's "prompt" or "text". The answer to a
prompt is the prompt, reversed; to a text, the vector of its length.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raybatch.engines.base import EngineSpec, Progress, Reply
from raybatch.errors import EngineLoadError


async def load(spec: EngineSpec) -> SimulatedEngine:
    """Wait `load_s`; the model called "missing" does not load."""
    await asyncio.sleep(spec.args.get("load_s", 0))
    if spec.model == "missing":
        raise EngineLoadError("engine simulated: the model 'missing' does not exist")
    return SimulatedEngine(spec)


class SimulatedEngine:
    """See the module's docstring."""

    def __init__(self, spec: EngineSpec) -> None:
        self._model = spec.model
        self._args = spec.args
        self._steps = 0
        self._in_flight = 0

    async def run(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
        self._in_flight += len(requests)
        try:
            return list(await asyncio.gather(*(self._one(r) for r in requests)))
        finally:
            self._in_flight -= len(requests)

    def progress(self) -> Progress:
        return Progress(steps=self._steps, generated_tokens=self._steps, in_flight=self._in_flight)

    def describe(self) -> Mapping[str, Any]:
        return {"engine": "simulated", "model": self._model, "max_in_flight": self._args.get("slots", 512)}

    def close(self) -> None:
        pass

    async def _one(self, request: Mapping[str, Any]) -> Reply:
        text = str(request["prompt"] if "prompt" in request else request["text"])
        await asyncio.sleep(self._args.get("seconds_per_row", 0))
        if self._args.get("dies_on") == text:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._args.get("hangs_on") == text:
            await asyncio.Event().wait()
        if self._args.get("refuses_on") == text:
            return Reply(failure="Refused", message=f"refuses_on {text!r}")
        self._steps += 1
        stats = {"prompt_tokens": len(text), "cached_tokens": 0, "generated_tokens": len(text)}
        if "text" in request:
            return Reply(value=np.array([len(text), 1.0], dtype=np.float32), stats=stats)
        output = {"text": text[::-1], "finish_reason": "stop", "tokens": len(text)}
        value = {"outputs": [output | {"reasoning": None, "logprobs": None}]}
        return Reply(value=value | {"prompt_tokens": len(text), "cached_tokens": 0}, stats=stats)

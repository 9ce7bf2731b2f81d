"""Small public fakes, for tests of pipelines and of raybatch itself. Each is honest about what it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raybatch.engines.base import Reply

Request = Mapping[str, Any]


class FakeEngine:
    """A fake `EngineClient`: no model, no process; each request is answered by the function it is given.

    `answer` returns the text for a `generate` request, or a whole `Reply`, also of another kind of engine, or
    for a failure. Tokens are counted as words. What was asked is kept in `requests`, and the number of calls
    in `calls`. It proves what a stage asks and what it makes of an answer; never that vLLM would answer so.

        engine = FakeEngine(lambda request: request["prompt"].upper())
        stage = GenerateConfig(model="org/name", prompt="{{ body }}", output="loud").build(
            StageContext(base_dir=".", engine=engine)
        )
    """

    def __init__(self, answer: Callable[[Request], str | Reply]) -> None:
        self._answer = answer
        self.requests: list[Request] = []
        self.calls = 0

    def call(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer in order. What `answer` raises goes through, as an engine that cannot be had does."""
        self.calls += 1
        self.requests.extend(requests)
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        found = self._answer(request)
        return found if isinstance(found, Reply) else generated(found, prompt_tokens=_words(request))


def generated(
    *texts: str, finish_reason: str = "stop", prompt_tokens: int = 0, cached_tokens: int = 0
) -> Reply:
    """The reply of a vLLM engine to one `generate` request: an output per text, tokens counted as words."""
    outputs = [
        {
            "text": text,
            "finish_reason": finish_reason,
            "tokens": len(text.split()),
            "reasoning": None,
            "logprobs": None,
        }
        for text in texts
    ]
    counts = {"prompt_tokens": prompt_tokens, "cached_tokens": cached_tokens}
    tokens = sum(len(text.split()) for text in texts)
    return Reply(value={"outputs": outputs, **counts}, stats={**counts, "generated_tokens": tokens})


def _words(request: Request) -> int:
    turns = request.get("messages", [])
    return len(" ".join([request.get("prompt", ""), *(turn["content"] for turn in turns)]).split())

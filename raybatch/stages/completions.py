"""The output column of `generate`: its type, and an engine's reply as one value of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from raybatch.stages.row_error import RowError
from raybatch.stages.structured import StructuredReader

# Per generated token: the chosen token, then the likeliest, as vLLM orders them.
LOGPROBS = pa.list_(
    pa.list_(
        pa.struct(
            [
                pa.field("token", pa.string()),
                pa.field("token_id", pa.int32()),
                pa.field("logprob", pa.float32()),
                pa.field("rank", pa.int32()),
            ]
        )
    )
)
_TOKENS = tuple(pa.field(f"{kind}_tokens", pa.int32()) for kind in ("prompt", "cached", "generated"))


class OutputColumn:
    """Explicit, never inferred: `type` depends on the stage's config alone.

    A struct of text, finish_reason, prompt_tokens, cached_tokens and generated_tokens (of all outputs), and,
    where asked for, json, reasoning and logprobs. With `n` above 1 these are of the first output that is
    valid, and `outputs` lists all of them in order: each with text, finish_reason, generated_tokens and what
    was asked for; `json` is null there for an output that is not what the schema says.
    """

    def __init__(
        self,
        *,
        structured: StructuredReader | None = None,
        n: int = 1,
        reasoning: bool = False,
        logprobs: bool = False,
    ) -> None:
        self._structured = structured
        extras = {
            "json": structured.json_type if structured else None,
            "reasoning": pa.string() if reasoning else None,
            "logprobs": LOGPROBS if logprobs else None,
        }
        asked = [pa.field(name, type_) for name, type_ in extras.items() if type_ is not None]
        self._asked = [field.name for field in asked]
        self._many = n > 1
        text = [pa.field("text", pa.string()), pa.field("finish_reason", pa.string())]
        each = pa.struct([*text, _TOKENS[-1], *asked])
        outputs = [pa.field("outputs", pa.list_(each))] if self._many else []
        self.type: pa.StructType = pa.struct([*text, *_TOKENS, *asked, *outputs])

    def read(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """One value of the column from an engine's `Reply.value`.

        Raises `RowError` when no output is what `structured` says.
        """
        outputs, errors = [], []
        for output in value["outputs"]:
            one, error = self._one(output)
            outputs.append(one)
            errors.append(error)
        first = next((i for i, error in enumerate(errors) if error is None), None)
        if first is None:
            raise (errors[0] if errors else None) or RowError("NoOutput", "the engine gave no output")
        found = outputs[first] | {
            "prompt_tokens": value["prompt_tokens"],
            "cached_tokens": value["cached_tokens"],
            "generated_tokens": sum(one["generated_tokens"] for one in outputs),
        }
        return found | {"outputs": outputs} if self._many else found

    def _one(self, output: Mapping[str, Any]) -> tuple[dict[str, Any], RowError | None]:
        text, finish_reason = output["text"], output["finish_reason"]
        found = {"text": text, "finish_reason": finish_reason, "generated_tokens": output["tokens"]}
        found |= {name: output.get(name) for name in self._asked if name != "json"}
        if self._structured is None:
            return found, None
        try:
            value = self._structured.read(text, finish_reason)
        except RowError as error:
            return found, error
        return found | {"json": value} if "json" in self._asked else found, None

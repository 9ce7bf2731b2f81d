"""A row that kills a real vLLM: a logits processor in the engine core, which is code of vLLM's user, ends its
process with SIGKILL when it is given the row's prompt."""

from __future__ import annotations

import json
import math
import os

import pytest

from oracle import Output, input_ids, wrong
from pipelines import MODEL, PLUGIN, Project

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]

UNIT = 8

POISON = """
    import os, signal
    from transformers import AutoTokenizer
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class Poison(LogitsProcessor):
        def __init__(self, vllm_config, device, is_pin_memory):
            self.tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)

        def is_argmax_invariant(self):
            return True

        def apply(self, logits):
            return logits

        def update_state(self, batch_update):
            for _, _, prompt, _ in batch_update.added if batch_update else ():
                if "31 March" in self.tokenizer.decode(prompt or []):
                    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_row_that_kills_vllm_is_found_by_halving(project: Project) -> None:
    project.functions(POISON)
    project.env = {**project.env, "PYTHONPATH": os.pathsep.join([str(PLUGIN), str(project.folder)])}
    days = [*range(1, 11), 31, *range(11, 16)]
    project.lines([{"day": day, "text": f"it was due on {day} March 2020 =>"} for day in days])
    generate = {
        "type": "generate",
        "model": str(MODEL),
        "prompt": "{{ text }}",
        "engine": {
            "dtype": "bfloat16",
            "max_model_len": 128,
            "enforce_eager": True,
            "logits_processors": ["functions:Poison"],
        },
        "sampling": {"temperature": 0, "max_tokens": 16},
        "output": "iso",
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    project.write(generate, run={"unit": {"max_rows": UNIT}, "max_error_rate": 0.1})
    done = project.start().wait(deadline_s=1500)
    assert done.code == 0, str(done)
    (row,) = Output(project.output).errors()
    assert (row["type"], json.loads(row["row"])["day"]) == ("EngineKilled", 31)
    assert 1 < done.document["engines"][0]["replaced"] <= math.log2(UNIT) + 3
    assert wrong(project.output, input_ids([project.input / "a.jsonl"])) == []

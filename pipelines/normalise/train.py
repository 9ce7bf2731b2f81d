"""Train the demo model from scratch: a million Llama parameters that turn a sentence into its ISO answer.

    python pipelines/normalise/train.py            # about half an hour on one CPU core

The prompt is `<text> =>`; the model continues with the answer and the end-of-sequence token. The tokenizer
is a byte-level BPE with single digits, so any text can be encoded and numbers are copied digit by digit. The
result in `model/` is an ordinary Hugging Face folder: `AutoTokenizer` and vLLM load it offline, without
remote code.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from task import Case, Split, cases

PROMPT_SUFFIX = " =>"
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCAB_SIZE = 832
MAX_POSITIONS = 512
IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out of the loss."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + PROMPT_SUFFIX + "{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one training run depends on, besides the code."""

    steps: int
    batch_size: int
    peak_lr: float
    warmup_steps: int
    seed: int
    evaluate_every: int
    """Steps between two evaluations on held-out cases; each one also saves the model."""
    evaluate_count: int
    out: Path


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded token ids and labels, both (batch, length); labels are `IGNORED` outside the answer."""

    ids: torch.Tensor
    labels: torch.Tensor


# --- tokenizer ----------------------------------------------------------------------------------------------


def train_tokenizer(*, sample: int = 30_000) -> Tokenizer:
    """A byte-level BPE learnt from training cases only; digits are never merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (c.text + PROMPT_SUFFIX + c.answer for c in cases(count=sample, seed=0, split="train"))
    tokenizer.train_from_iterator(lines, trainer=trainer)
    with_bos = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    tokenizer.post_processor = with_bos
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, *, out: Path) -> None:
    """Write tokenizer.json, and a tokenizer_config.json that transformers 4 and 5 read alike."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "padding_side": "left",
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


# --- data ---------------------------------------------------------------------------------------------------


def collate(batch: list[Case], *, tokenizer: Tokenizer) -> Batch:
    """Prompt and answer are encoded apart, as they are when a model continues a prompt."""
    prompts = tokenizer.encode_batch([c.text + PROMPT_SUFFIX for c in batch])
    answers = tokenizer.encode_batch([c.answer for c in batch], add_special_tokens=False)
    rows = [(p.ids, [*a.ids, EOS_ID]) for p, a in zip(prompts, answers, strict=True)]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), PAD_ID)
    labels = torch.full((len(rows), width), IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return Batch(ids=ids, labels=labels)


def batches(*, tokenizer: Tokenizer, size: int, count: int, seed: int, split: Split) -> Iterator[Batch]:
    """`count` cases in batches of `size`; the last one may be smaller."""
    rest = cases(count=count, seed=seed, split=split)
    while batch := list(itertools.islice(rest, size)):
        yield collate(batch, tokenizer=tokenizer)


# --- model --------------------------------------------------------------------------------------------------


def build_model() -> LlamaForCausalLM:
    """1.1 M parameters. head_dim is 64 because every attention backend of vLLM, CPU and GPU, supports it."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def in_bfloat16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy with the weights that inference will see."""
    return copy.deepcopy(model).to(torch.bfloat16)


def answer_logits(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary) and labels (n) of the n answer tokens in `batch`; the head sees nothing else."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    labels = batch.labels[:, 1:]
    wanted = labels != IGNORED
    return model.lm_head(hidden[wanted]), labels[wanted]


def accuracy(model: LlamaForCausalLM, batches: Iterator[Batch]) -> float:
    """Share of cases that greedy decoding in bfloat16 answers exactly.

    Every token is predicted from the right answer's prefix: if each is right, greedy decoding takes
    the same path, and if one is wrong, so is the answer.
    """
    rounded = in_bfloat16(model)
    right = total = 0
    for batch in batches:
        with torch.no_grad():
            logits, labels = answer_logits(rounded, batch)
        lengths = (batch.labels != IGNORED).sum(dim=1).tolist()
        hits = (logits.argmax(dim=-1) == labels).split(lengths)
        right += sum(bool(h.all()) for h in hits)
        total += len(hits)
    return right / total


def save_model(model: LlamaForCausalLM, *, out: Path) -> None:
    """Write the weights in bfloat16, with config.json and generation_config.json (greedy)."""
    rounded = in_bfloat16(model)
    rounded.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    rounded.save_pretrained(out)


# --- training -----------------------------------------------------------------------------------------------


def learning_rate(*, finished: int, settings: Settings) -> float:
    """The rate of the step after `finished` steps: a linear warm-up, then a cosine down to almost nothing."""
    if finished < settings.warmup_steps:
        return settings.peak_lr * (finished + 1) / settings.warmup_steps
    progress = (finished - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.peak_lr * 0.5 * (1 + math.cos(math.pi * progress))


def train(settings: Settings) -> None:
    """Train and save to `settings.out`, with a line of progress at each evaluation."""
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, out=settings.out)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    size, seed = settings.batch_size, settings.seed
    data = batches(tokenizer=tokenizer, size=size, count=settings.steps * size, seed=seed, split="train")
    started = time.monotonic()
    for step, batch in enumerate(data, start=1):
        loss = update(model, optimizer, batch, lr=learning_rate(finished=step - 1, settings=settings))
        if step % settings.evaluate_every == 0 or step == settings.steps:
            count = settings.evaluate_count
            held_out = batches(tokenizer=tokenizer, size=250, count=count, seed=seed, split="held_out")
            score, seconds = accuracy(model, held_out), time.monotonic() - started
            save_model(model, out=settings.out)
            print(f"step {step} loss {loss:.4f} held-out {score:.4f} after {seconds:.0f} s", flush=True)


def update(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, *, lr: float) -> float:
    """One optimizer step; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = torch.nn.functional.cross_entropy(*answer_logits(model, batch))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss)


def parse_arguments() -> Settings:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--warmup-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--evaluate-count", type=int, default=1000, metavar="CASES")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    return Settings(**vars(parser.parse_args()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(parse_arguments())

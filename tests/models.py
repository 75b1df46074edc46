"""Model folders for tests: random weights of a few thousand parameters, and a tokenizer trained on the spot.

    folder = make_model(tmp_path / "model", "qwen2", CHATML)

Nothing is downloaded; `Yes`, ` Yes`, `No`, ` No` and the letters A to D are single tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

BOS, END, TURN = "<s>", "</s>", "<|turn|>"
CHATML = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
WORDS = [*"ABCD", "Yes", "No", "yes", "no", "YES", "NO", "User", "Assistant", "Request", "Response", "is", "the", "of"]


def make_tokenizer(folder: Path, template: str | None = CHATML, words: list[str] = WORDS, bos: bool = False) -> Path:
    """A byte-level BPE tokenizer whose whole words are `words`, each with and without a leading blank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[BOS, END, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{word}\n{word}\n {word}\n {word}" for word in words] * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=END)
    fast.chat_template = template
    fast.save_pretrained(str(folder))
    return folder


def config_of(architecture: str, vocab_size: int, positions: int = 512, width: int = 8) -> PreTrainedConfig:
    """Two heads, one layer; `architecture` is llama, qwen2, gpt2 or phi."""
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    if architecture == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size, n_positions=positions, n_embd=width, n_layer=1, n_head=2, n_inner=16, **ends
        )
    kinds: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "phi": PhiConfig}
    return kinds[architecture](
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2 if architecture == "phi" else 1,
        max_position_embeddings=positions,
        **({"pad_token_id": None} if architecture != "phi" else {}),
        **ends,
    )


def save_weights(folder: Path, config: PreTrainedConfig, seed: int = 0) -> None:
    """Random weights, large enough that greedy text and label odds differ between prompts."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder))


def make_model(
    folder: Path,
    architecture: str = "llama",
    template: str | None = CHATML,
    positions: int = 512,
    words: list[str] = WORDS,
) -> Path:
    """A folder that `--model` takes."""
    make_tokenizer(folder, template, words, bos=template is None)
    size = len(AutoTokenizer.from_pretrained(str(folder)))
    save_weights(folder, config_of(architecture, size, positions))
    return folder


def make_prompts(path: Path, number: int, references: bool = True) -> Path:
    """A JSONL file of short prompts, each with a reference answer."""
    rows = [{"id": f"p{i}", "prompt": f"Is {i} one of the two?"} for i in range(number)]
    if references:
        rows = [row | {"reference": "Yes" if i % 2 else "No"} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

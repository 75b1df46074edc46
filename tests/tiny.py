"""Random models of a few thousand weights and a small tokenizer, for tests that need a model but no sense.

    >>> model("llama").config.num_key_value_heads
    2

Weights are drawn wide (standard deviation 0.25), so that attention, biases and soft-caps all change the result.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CONTEXT = 512
END, PAD, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNSTABLE = CHATML.replace("{% endif %}", "<think>\n{% endif %}")
"""The generation prompt opens a block that the finished turn does not have."""
VOCABULARY = 320

_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA_LIKE),
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "gpt2": ("gpt2", _GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt2-dropout": ("gpt2", _GPT2),
    "phi": ("phi", _LLAMA_LIKE | {"num_key_value_heads": 4}),
    "mistral": ("mistral", _LLAMA_LIKE | {"sliding_window": 16}),
    "qwen3": ("qwen3", _LLAMA_LIKE | {"head_dim": 8}),
    "gemma2": (
        "gemma2",
        _LLAMA_LIKE
        | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
    ),
    "granite": ("granite", _LLAMA_LIKE | {"logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "cohere": ("cohere", _LLAMA_LIKE | {"logit_scale": 0.25}),
    "gpt_oss": (
        "gpt_oss",
        _LLAMA_LIKE | {"head_dim": 8, "sliding_window": CONTEXT, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "opt-dropout": (
        "opt",
        {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": CONTEXT, "dropout": 0.1},
    ),
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}


@cache
def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens; Yes, No and the letters are single tokens with and without a blank."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["Yes", "No", "yes", "no", "YES", "NO", "A", "B", "C", "D", "assistant", "user", "Request:", "Response:"]
    text = [word for word in words for _ in range(50)] + [f" {word}" for word in words for _ in range(50)]
    bpe.train_from_iterator([*text, "What is the sum of two and three? It is five, of course."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD, chat_template=template)


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A fresh random model in evaluation mode, float32."""
    kind, options = _CONFIGS[name]
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **({"vocab_size": VOCABULARY} | ends | options | changes))
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config)
    for weight in built.parameters():
        weight.data += torch.randn_like(weight) * (0.25 if weight.dim() > 1 else 0.1)
    return built.eval()


def with_lora(base: Any, seed: int = 0) -> Any:
    """A LoRA adapter on all linear layers whose B is not zero, so that it changes the result."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    transposed = base.config.model_type == "gpt2"
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", fan_in_fan_out=transposed)
    adapted = get_peft_model(base, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    return adapted


def save(folder: Path, name: str, template: str | None = CHATML, seed: int = 0, **changes: Any) -> str:
    """A model folder with tokenizer."""
    model(name, seed, **changes).save_pretrained(str(folder))
    tokenizer(template).save_pretrained(str(folder))
    return str(folder)

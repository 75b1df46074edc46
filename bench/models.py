"""Random Llama-shaped models with a tokenizer of one token per word, as folders that every way can load.

    save(SHAPES["18M"], "/tmp/model", place, mean_response=64)

Speed does not depend on the weights, with one exception: when a response ends. The end token's row of the tied output
head is set so that each step ends a response with probability 1 / mean_response, which gives geometric lengths.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from bench.ways import Place
from selfjudge.models import quiet_libraries

PAD, END, YES, NO, UNKNOWN = "<pad>", "</s>", "Yes", "No", "<unk>"
SPECIAL = (PAD, END, UNKNOWN, YES, NO, "yes", "no", "YES", "NO")
END_ID = SPECIAL.index(END)
CONTEXT = 4096
NEVER_ENDS = 1e9
"""A mean response so long that hardly any draw of a benchmark ends before its limit."""
TEMPERATURE = 0.7
"""At which responses are drawn, and end as often as asked for."""
COMMON = 0.1
"""First coordinate of every embedding, 5 times the others' size: the direction in which the end token stands out."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with a tied output head."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers: each takes part in every token once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        """Weights of the linear layers and of the head."""
        return self.linear_parameters + self.hidden_size * self.vocab_size


SHAPES = {
    "tiny": Shape(64, 128, 2, 2, 1, 32, 512),  # for the tests of this benchmark
    "18M": Shape(320, 960, 6, 5, 5, 64, 32000),
    "18M, 128k": Shape(320, 960, 6, 5, 5, 64, 128256),
    "125M": Shape(576, 1536, 30, 9, 3, 64, 32000),
    "125M, 128k": Shape(576, 1536, 30, 9, 3, 64, 128256),
    "1B": Shape(2048, 8192, 16, 32, 8, 64, 128256),
    "8B": Shape(4096, 14336, 32, 32, 8, 128, 128256),
}


def save(shape: Shape, place: Place, mean_response: float) -> None:
    """Writes model and tokenizer to the place's folder."""
    quiet_libraries()
    torch.set_num_threads(place.threads)
    build(shape, place, mean_response).save_pretrained(place.folder)
    tokenizer(shape.vocab_size).save_pretrained(place.folder)


@torch.no_grad()
def build(shape: Shape, place: Place, mean_response: float) -> Any:
    """The model in evaluation mode on the place's device."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **asdict(shape),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=SPECIAL.index(PAD),
    )
    with torch.device(place.device):
        model = AutoModelForCausalLM.from_config(config, dtype=place.torch_dtype).eval()
    model.get_output_embeddings().weight[:, 0] = COMMON
    _end_after(model, mean_response)
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=config.pad_token_id)
    return model


def _end_after(model: Any, mean_response: float) -> None:
    """Finds the end token's first coordinate by bisection on random text.

    Where no response shall end, the end token stays as likely as any other: a few in 10,000 end early.
    """
    weight = model.get_output_embeddings().weight
    if mean_response >= NEVER_ENDS:
        return
    ids = torch.randint(len(SPECIAL), weight.shape[0], (16, 32), device=weight.device)
    hidden = model.base_model(ids).last_hidden_state[:, 16:].flatten(0, 1)
    others = ((hidden @ weight[len(SPECIAL) :].T).float() / TEMPERATURE).logsumexp(-1)
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        chance = _sigmoid_mean(hidden[:, 0].float() * middle / TEMPERATURE - others)
        low, high = (middle, high) if chance < 1 / mean_response else (low, middle)
    weight[END_ID] = 0
    weight[END_ID, 0] = low


def _sigmoid_mean(logits: Tensor) -> float:
    return float(torch.sigmoid(logits).double().mean())


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token per word: Yes, No, their other spellings, and w9, w10, ...; any other word is unknown."""
    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), vocab_size))]
    level = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=level,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
    )


@torch.no_grad()
def load(place: Place) -> tuple[Any, Any]:
    """Model and tokenizer as anybody would load them; one pass brings the mapped weights into memory."""
    model = AutoModelForCausalLM.from_pretrained(place.folder, dtype=place.torch_dtype).to(place.device).eval()
    model(torch.tensor([[END_ID]], device=place.device), use_cache=False)
    return model, AutoTokenizer.from_pretrained(place.folder)


def words(count: int, random_numbers: random.Random, vocab_size: int) -> str:
    """`count` random words, each one token."""
    return " ".join(f"w{random_numbers.randrange(len(SPECIAL), vocab_size)}" for _ in range(count))

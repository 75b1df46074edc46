"""What training needs at its peak, known before it starts.

    memory = training_memory(policy, preference)
    memory.peak(tokens=2048)                 # bytes

Weights, gradients and optimiser follow from the parameters. What one backward pass keeps is measured: forward passes
over a prompt once and twice count the bytes that autograd saves, and packed rows need the same for every token.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from selfjudge.errors import ModelError
from selfjudge.forward import causal_lm
from selfjudge.head import CHUNK_ELEMENTS
from selfjudge.preferences import Preference
from selfjudge.trainer import Policy

ADAM_STATES = 2  # first and second moment, in the parameter's dtype
GIB = 1 << 30


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the device; `per_pass` and `per_token` are what one backward pass needs at once, and for each token."""

    weights: int
    gradients: int
    optimizer: int
    per_pass: float
    per_token: float

    @property
    def fixed(self) -> float:
        """What does not depend on the tokens, beside the weights, which are loaded already."""
        return self.gradients + self.optimizer + self.per_pass

    def peak(self, tokens: int) -> float:
        """All of it, `tokens` in one backward pass; what the allocator wastes comes on top."""
        return self.weights + self.fixed + tokens * self.per_token

    def tokens(self, free: float) -> int:
        """How many tokens of one backward pass fit `free` bytes beside the weights; 0 where nothing does."""
        return max(0, int((free - self.fixed) / self.per_token))

    def describe(self, tokens: int) -> str:
        """`6.1 GiB (weights 0.5, gradients and optimiser 0.1, 5.5 for 2,048 tokens at a time)`."""
        rest = self.per_pass + tokens * self.per_token
        parts = [n / GIB for n in (self.peak(tokens), self.weights, self.gradients + self.optimizer, rest)]
        return (
            f"{parts[0]:.2f} GiB (weights {parts[1]:.2f}, gradients and optimiser {parts[2]:.2f}, {parts[3]:.2f} for "
            f"{tokens:,} tokens at a time)"
        )


def training_memory(policy: Policy, preference: Preference) -> TrainingMemory:
    """Measured on one preference, in evaluation mode and within `policy.forward`."""
    parameters = list(policy.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    per_pass, per_token = _saved(policy, preference)
    return TrainingMemory(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        gradients=trained,
        optimizer=ADAM_STATES * trained,
        per_pass=per_pass + 2 * 4 * CHUNK_ELEMENTS,  # a chunk of logits in float32, and the products with it
        per_token=per_token,
    )


def _saved(policy: Policy, preference: Preference) -> tuple[float, float]:
    """Bytes that autograd keeps per backward pass (weights cast to another dtype) and per token of its rows.

    With gradient checkpointing these are one layer's, and every layer's input.
    """
    model = causal_lm(policy.model)
    text = model.config.get_text_config()
    policy.model.eval()  # checkpointing is at work in training mode only
    once, twice = (_saved_bytes(policy, [preference] * count) for count in (1, 2))
    tokens = preference.tree.num_tokens
    per_token = (twice - once) / tokens
    per_pass = once - tokens * per_token
    if not model.is_gradient_checkpointing:
        return per_pass, per_token
    inputs = text.num_hidden_layers * text.hidden_size * model.dtype.itemsize
    return per_pass / text.num_hidden_layers, per_token / text.num_hidden_layers + inputs


def _saved_bytes(policy: Policy, preferences: Sequence[Preference]) -> int:
    known = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    found: dict[int, Tensor] = {}  # holding the tensors keeps their addresses apart

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy.losses(preferences)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def tried_micro_batch(
    policy: Policy, largest: Sequence[Preference], sizes: Sequence[int], reserve: int, say: Callable[[str], None]
) -> int:
    """The first of `sizes` (falling) whose largest batch can be computed backwards with `reserve` bytes set aside.

    `largest` holds the preferences with most tokens, most first. Raises ModelError where the smallest size fails.
    Only for devices that report that memory ran out: on a CPU the process would be killed.
    """
    for size in sizes:
        if _fits(policy, largest[:size], reserve):
            return size
        gc.collect()
        clear_device_cache()
        say(f"train: out of memory with {size} prompts in one backward pass")
    tokens = largest[0].tree.num_tokens
    raise ModelError(
        f"out of memory training on one prompt with its responses ({tokens} tokens); use --gradient-checkpointing, "
        "--lora-rank, a lower --max-length or a smaller model"
    )


def _fits(policy: Policy, preferences: Sequence[Preference], reserve: int) -> bool:
    try:
        aside = torch.empty(reserve, dtype=torch.uint8, device=causal_lm(policy.model).device)
        losses, _ = policy.losses(preferences)
        losses.mean().backward()
        del aside
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        policy.model.zero_grad()
    return True

"""Speed of the three computations against the usual way, in one run: `python -m bench.small` (about two minutes).

Each pair of ways does the same work on the same random Llama-shaped model (18 M parameters, 32,000 tokens), one thread,
float32, in turns; the ratio of the medians is what to read. Before timing, both ways must agree.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel

from selfjudge.forward import RowForward
from selfjudge.head import label_logprobs, output_head, response_logps
from selfjudge.models import quiet_libraries
from selfjudge.rows import Tree, pack
from selfjudge.sampling import draw

YES, NO = 101, 102
TURNS = 3
BUDGET = 2048

Way = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same figures; `tolerance` is None where the results are random draws."""

    name: str
    usual: Way
    ours: Way
    tolerance: float | None


def model_of(width: int = 320, layers: int = 6, vocabulary: int = 32000) -> PreTrainedModel:
    """A random model; its speed does not depend on its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def trees_of(count: int, prefix: int, branch: int, branches: int) -> list[Tree]:
    """Random prompts with responses of about `branch` tokens."""
    rng = random.Random(0)

    def ids(length: int) -> list[int]:
        return [rng.randrange(200, 30000) for _ in range(length)]

    return [
        Tree(ids(prefix), tuple(ids(rng.randint(branch // 2, branch)) for _ in range(branches))) for _ in range(count)
    ]


def sequences(trees: Sequence[Tree]) -> list[tuple[Sequence[int], Sequence[int]]]:
    return [(tree.prefix, branch) for tree in trees for branch in tree.branches]


def scoring(name: str, model: PreTrainedModel, trees: Sequence[Tree]) -> Comparison:
    """Log-odds of Yes against No: one sequence at a time with all logits, against packed rows."""
    head = output_head(model)

    @torch.no_grad()
    def usual() -> torch.Tensor:
        found = [model(torch.tensor([[*p, *b]])).logits[0, -1] for p, b in sequences(trees)]
        return torch.stack([logits[YES] - logits[NO] for logits in found])

    @torch.no_grad()
    def ours() -> torch.Tensor:
        values: dict[int, torch.Tensor] = {}
        with RowForward(model, 4096) as forward:
            for row in pack(trees, BUDGET):
                last = torch.tensor([branch.span.stop - 1 for branch in row.branches])
                logprobs, _ = label_logprobs(head, forward(row)[last], [[YES], [NO]])
                values.update(zip((b.index for b in row.branches), logprobs[:, 0] - logprobs[:, 1], strict=True))
        return torch.stack([values[index] for index in range(len(values))])

    return Comparison(name, usual, ours, 1e-4)


def training(name: str, model: PreTrainedModel, trees: Sequence[Tree]) -> Comparison:
    """Response log-probabilities with gradient: a padded batch of whole sequences, against packed rows."""
    head = output_head(model)

    def backward(logps: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        logps.sum().backward()
        return logps.detach()

    def usual() -> torch.Tensor:
        pairs = sequences(trees)
        longest = max(len(p) + len(b) for p, b in pairs)
        ids = torch.tensor([[*p, *b] + [0] * (longest - len(p) - len(b)) for p, b in pairs])
        mask = torch.tensor([[1] * (len(p) + len(b)) + [0] * (longest - len(p) - len(b)) for p, b in pairs])
        logps = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        tokens = logps.gather(-1, ids[:, 1:, None])[..., 0]
        return backward(
            torch.stack([t[len(p) - 1 : len(p) + len(b) - 1].sum() for t, (p, b) in zip(tokens, pairs, strict=True)])
        )

    def ours() -> torch.Tensor:
        with RowForward(model, 4096) as forward:
            return backward(torch.cat([response_logps(head, forward(row), row) for row in pack(trees, BUDGET)]))

    return Comparison(name, usual, ours, 1e-2)


def sampling(name: str, model: PreTrainedModel, prompts: int, samples: int, tokens: int) -> Comparison:
    """Batched `generate` with its own draw, against the same with ours and prompts computed once."""
    ids = torch.tensor([tree.prefix for tree in trees_of(prompts, 64, 2, 1)])
    config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=0, max_new_tokens=tokens, eos_token_id=[], pad_token_id=0
    )
    streams = torch.arange(prompts * samples).view(prompts, samples)
    mask = torch.ones_like(ids)

    def usual() -> torch.Tensor:
        return model.generate(ids, attention_mask=mask, generation_config=config, num_return_sequences=samples)

    def ours() -> torch.Tensor:
        drawn = model.generate(
            ids,
            attention_mask=mask,
            generation_config=config,
            custom_generate=draw,
            streams=streams,
            places=prompts * samples,
        )
        return torch.cat([running.tokens[running.ended] for running in drawn])

    return Comparison(name, usual, ours, None)


def compare(comparison: Comparison) -> str:
    """One line: medians in seconds, their ratio, the largest difference of the results."""
    first, second = comparison.usual(), comparison.ours()
    difference = "random draws"
    if comparison.tolerance is not None:
        gap = float((first - second).abs().max())
        if gap > comparison.tolerance:
            raise SystemExit(f"{comparison.name}: the two ways differ by {gap}")
        difference = f"{gap:.1e}"
    times: dict[str, list[float]] = {"usual": [], "ours": []}
    for _ in range(TURNS):
        for label, way in (("usual", comparison.usual), ("ours", comparison.ours)):
            start = time.perf_counter()
            way()
            times[label].append(time.perf_counter() - start)
    usual, ours = (statistics.median(times[label]) for label in ("usual", "ours"))
    return f"| {comparison.name} | {usual:.2f} | {ours:.2f} | {usual / ours:.2f} | {difference} |"


def main() -> None:
    torch.set_num_threads(1)
    quiet_libraries()
    model = model_of()
    print("| work | usual, s | ours, s | usual / ours | largest difference |\n|---|---|---|---|---|")
    for comparison in (
        scoring("score 6 x 4 responses of ~150 tokens, prompt 64", model, trees_of(6, 64, 200, 4)),
        scoring("score 4 x 4 responses of ~100 tokens, prompt 600", model, trees_of(4, 600, 130, 4)),
        training("log-probs and gradient, 4 x 2 responses of ~150 tokens, prompt 64", model, trees_of(4, 64, 200, 2)),
        training("log-probs and gradient, 2 x 4 responses of ~100 tokens, prompt 400", model, trees_of(2, 400, 130, 4)),
        sampling("sample 8 prompts x 4 responses of 48 tokens", model, 8, 4, 48),
    ):
        print(compare(comparison), flush=True)


if __name__ == "__main__":
    main()

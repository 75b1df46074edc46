"""Every judge on real benchmark rows: what each says, and how sure that is.

    python -m bench.judging --data FOLDER --tokenizer FOLDER [--limit 24] [--model FOLDER] [--reward-model FOLDER]

FOLDER of the data holds `rm_bench` and `rewardbench` with files as the benchmarks publish them. Without --model a small
Llama with random weights is judged, which must be at chance: what this shows is that the rows go through every judge,
and that chance looks like chance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from bench.table import table
from selfjudge.checks import build_checked
from selfjudge.config import BenchConfig
from selfjudge.console import Console
from selfjudge.judges import JUDGES
from selfjudge.models import quiet_libraries
from selfjudge.steps import bench

BENCHMARKS = {"rm-bench": "rm_bench", "rewardbench": "rewardbench"}
"""Benchmark -> its folder below that of the data."""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
JUDGE_TOKENS = 16
"""Of a generated judgement; a random model would otherwise go on to its limit."""
HEADER = ("benchmark", "judge", "accuracy", "95 % interval", "strict", "pairs", "ties", "missing", "cut", "seconds")


def save_small(folder: Path, tokenizer: str) -> tuple[Path, Path]:
    """A random language model and a random reward model over a real tokenizer."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.chat_template = words.chat_template or TEMPLATE
    words.pad_token = words.pad_token or words.eos_token
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=len(words), max_position_embeddings=2048, num_labels=1)
    config.pad_token_id = words.pad_token_id
    torch.manual_seed(0)
    made = {"judge": LlamaForCausalLM(config), "reward": LlamaForSequenceClassification(config)}
    for name, model in made.items():
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder / "judge", folder / "reward"


def measured(judge: str, benchmark: str, data: Path, options: argparse.Namespace, out: Path) -> tuple[Any, float]:
    """The figures of one judge on one benchmark, and the seconds that it took."""
    given: dict[str, Any] = {"judge": judge, "benchmark": benchmark, "data": str(data), "out": str(out)}
    if JUDGES[judge].asks != "nobody":
        given["model"] = options.reward_model if JUDGES[judge].asks == "reward model" else options.model
    if judge in ("rating", "pairwise-verdict"):
        given["judge_tokens"] = JUDGE_TOKENS
    begun = time.perf_counter()
    figures = bench.run(build_checked(BenchConfig, given | {"limit": options.limit}), Console(quiet=True))
    return figures, time.perf_counter() - begun


def line(benchmark: str, judge: str, figures: dict[str, Any], seconds: float) -> list[str]:
    """A row of the table."""
    found = figures["judge_accuracy"]
    shown = [_shown(found["value"]), f"{_shown(found['low'])} to {_shown(found['high'])}"]
    counts = [str(figures[name]) for name in ("pairs", "ties", "missing", "truncated")]
    return [benchmark, judge, *shown, _shown(figures["judge_strict"]), *counts, f"{seconds:.0f}"]


def _shown(value: float | None) -> str:
    """A judge none of whose answers can be read has no accuracy."""
    return "none" if value is None else f"{value:.3f}"


def main(words: Sequence[str] | None = None) -> int:
    """Prints a Markdown table."""
    options = _options(words)
    quiet_libraries()
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="judging-") as folder:
        if options.model is None or options.reward_model is None:
            small = save_small(Path(folder), options.tokenizer)
            options.model, options.reward_model = options.model or str(small[0]), options.reward_model or str(small[1])
        for benchmark, place in BENCHMARKS.items():
            for judge in JUDGES:
                if judge == "oracle":
                    continue  # the rows have no reference answers
                out = Path(folder) / f"{benchmark}-{judge}"
                lines.append(line(benchmark, judge, *measured(judge, benchmark, options.data / place, options, out)))
                print(" ".join(lines[-1]), file=sys.stderr, flush=True)
    print(table(HEADER, lines))
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.judging", description="Every judge on real rows.")
    parser.add_argument("--data", type=Path, required=True, help="folder with rm_bench and rewardbench")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer for the random model")
    parser.add_argument("--limit", type=int, default=24, help="rows of each benchmark; 0: all (default: 24)")
    parser.add_argument("--model", help="the model that judges (default: a small one with random weights)")
    parser.add_argument("--reward-model", help="the reward model (default: a small one with random weights)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())

"""Rebuilds a lab model from nothing: tokenizer, data, weights and the claims about them.

    python -m selfjudge.lab.build --out runs/lab [--weak] [--seed 0]

Takes about nine minutes on one thread of a CPU, five with `--weak`. The same seed draws the same rows; the weights then
agree with the shipped ones up to the rounding of another machine or library, and so do the figures in `claims.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfjudge.lab.measure import MAX_NEW_TOKENS, SAMPLES, measure
from selfjudge.lab.rows import draw_rows, fingerprint, train_tokenizer
from selfjudge.lab.train import Recipe, pretrain, timed_report
from selfjudge.lab.world import questions_of

RECIPES = {"lab": Recipe(steps=1200), "lab-weak": Recipe(steps=850, verifications=44)}
FIRST_STEPS = 5
"""Steps whose rows `claims.json` holds the hash of."""


def build(directory: Path, name: str, seed: int) -> dict[str, Any]:
    """Trains, saves and measures one model; returns its claims."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer()
    model = pretrain(tokenizer, RECIPES[name], seed, timed_report(every=50))
    save(directory, model, tokenizer)
    claims = claim(directory, name, seed)
    (directory / "claims.json").write_text(json.dumps(claims, indent=2) + "\n", encoding="utf-8")
    return claims


def save(directory: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights in bfloat16, tokenizer and generation settings, in the layout of `from_pretrained`."""
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def claim(directory: Path, name: str, seed: int) -> dict[str, Any]:
    """What a saved model is and can do, measured on its rounded weights."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    questions = questions_of("dev")
    return {
        "model": name,
        "seed": seed,
        "steps": RECIPES[name].steps,
        "measured": f"on {len(questions)} dev questions in float32; greedy and {SAMPLES} samples each at temperature 1 "
        f"(seed 0, at most {MAX_NEW_TOKENS} tokens); judge: log-odds of Yes, right answer against wrong one",
        "figures": measure(model, tokenizer, questions),
        "weights_sha256": weights_hash(directory),
        "rows_sha256": first_rows_hash(tokenizer, RECIPES[name], seed),
    }


def weights_hash(directory: Path) -> str:
    """SHA-256 of the weights file."""
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def first_rows_hash(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> str:
    """SHA-256 of the rows of the first steps, as `pretrain` draws them."""
    rng = Random(seed)
    drawn = [draw_rows(tokenizer, rng, recipe.demonstrations, recipe.verifications) for _ in range(FIRST_STEPS)]
    return fingerprint([row for told, verified in drawn for row in (*told, *verified)])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m selfjudge.lab.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--weak", action="store_true", help="build lab-weak, whose judge errs more often")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the rows (default 0)")
    options = parser.parse_args(arguments)
    claims = build(options.out, "lab-weak" if options.weak else "lab", options.seed)
    print(json.dumps(claims["figures"], indent=2))


if __name__ == "__main__":
    main()

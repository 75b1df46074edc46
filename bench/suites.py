"""Which comparisons are made: a small suite for every day, the full one, and that of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench import rounds, sampling, scoring, training
from bench.comparison import Bar, Case
from bench.machine import LIMIT
from bench.models import NEVER_ENDS
from bench.rounds import Round
from bench.sampling import Sampling
from bench.scoring import Scoring
from bench.training import Training
from bench.ways import counted

MEAN_RESPONSE = 64.0
KINDS = ("scoring", "sampling", "training", "rounds")
SMALL_SCORING = (scoring.REFERENCE, scoring.ONE_BY_ONE, scoring.PADDED, scoring.OURS, LIMIT)
SMALL_SAMPLING = (sampling.BATCHED, sampling.OURS, LIMIT)
SMALL_TRAINING = (training.TRL_TUNED, training.OURS, LIMIT)


@dataclass(frozen=True)
class Suite:
    """Cases by kind; `machine_shape` is the model whose matrix products are measured."""

    turns: int
    machine_shape: str
    cases: dict[str, list[Case]]


def scoring_case(work: Scoring, at_least: float, share_of_limit: float = 0.0, **changes: object) -> Case:
    """Several responses behind each prompt; `at_least` is the bar against the reference, 0 for none."""
    bars = [Bar(scoring.OURS, scoring.PADDED, 1.0)]
    if at_least:
        bars.append(Bar(scoring.OURS, scoring.REFERENCE, at_least))
    if share_of_limit:
        bars.append(Bar(scoring.OURS, LIMIT, share_of_limit, "operations"))
    title = (
        f"Scoring, {work.shape}: {counted(work.prompts, 'prompt')} of {work.prompt_tokens} tokens, "
        f"{work.num_responses} responses of {work.response_tokens // 2} to {work.response_tokens}"
    )
    options = {"ways": tuple(scoring.WAYS), "mean_response": MEAN_RESPONSE, "bars": tuple(bars)} | changes
    return Case(title, work.shape, work, peer=scoring.REFERENCE, unit="scores", **options)


def sampling_case(work: Sampling, at_least: float, mean_response: float = NEVER_ENDS, **changes: object) -> Case:
    """`mean_response` below the limit gives ragged lengths; `at_least` is the bar against one batch of `generate`."""
    ends = "up to" if mean_response == NEVER_ENDS else f"{mean_response:.0f} tokens on average, at most"
    title = (
        f"Sampling, {work.shape}: {counted(work.prompts, 'prompt')} of up to {work.prompt_tokens} tokens, "
        f"{work.num_responses} responses of {ends} {work.new_tokens}"
    )
    bars = (Bar(sampling.OURS, sampling.BATCHED, at_least), Bar(sampling.OURS_VLLM, sampling.VLLM, 0.95))
    options = {"ways": tuple(sampling.WAYS), "bars": bars} | changes
    return Case(title, work.shape, work, peer=sampling.BATCHED, unit="tokens", mean_response=mean_response, **options)


def training_case(work: Training, at_least: float, **changes: object) -> Case:
    """`at_least` is the bar against tuned TRL, in pairs per second."""
    what = counted(work.prompts_per_step, "pair")
    if work.num_responses > 2:
        what = f"{counted(work.prompts_per_step, 'group')} of {work.num_responses} (all {work.pairs_per_prompt} pairs)"
    title = (
        f"Training, {work.shape}: {what} a step, prompts of {work.prompt_tokens} tokens, "
        f"responses of {work.response_tokens // 2} to {work.response_tokens}"
    )
    bars = (
        Bar(training.OURS, training.TRL_TUNED, at_least),
        Bar(training.OURS, training.TRL_TUNED, 1.0, "memory"),
    )
    options = {"ways": tuple(training.WAYS), "mean_response": MEAN_RESPONSE, "bars": bars} | changes
    return Case(title, work.shape, work, peer=training.TRL_TUNED, unit="pairs", **options)


def round_case(work: Round) -> Case:
    """The whole command; nothing is promised of it but that it is not slower."""
    title = (
        f"Whole round, {work.shape}: {counted(work.prompts, 'prompt')} of {work.prompt_tokens} tokens, "
        f"{work.num_responses} responses of {work.new_tokens}, steps of {work.batch_size} pairs"
    )
    bars = (Bar(rounds.OURS, rounds.PIECES, 1.0),)
    return Case(title, work.shape, work, tuple(rounds.WAYS), rounds.PIECES, "prompts", NEVER_ENDS, bars)


def small() -> Suite:
    """18M only, few repetitions' worth of work: under three minutes on two quiet cores."""
    return Suite(
        3,
        "18M",
        {
            "scoring": [
                scoring_case(Scoring("18M", 3, 64, 200), 2.5, ways=SMALL_SCORING),
                scoring_case(Scoring("18M", 1, 800, 130), 4.0, ways=SMALL_SCORING),
            ],
            "sampling": [
                sampling_case(
                    Sampling("18M", 8, 64, 32),
                    1.4,
                    ways=SMALL_SAMPLING,
                    bars=(Bar(sampling.OURS, sampling.BATCHED, 1.4),),
                )
            ],
            "training": [training_case(Training("18M", 2, 64, 200, steps=1), 3.0, ways=SMALL_TRAINING)],
            "rounds": [],
        },
    )


def full() -> Suite:
    """18M and 125M, 32k and 128k vocabularies, short and long prompts."""
    return Suite(
        3,
        "125M",
        {
            "scoring": [case for shape, bars in _SCORING_BARS.items() for case in _scoring_cases(shape, bars)],
            "sampling": [
                sampling_case(Sampling("18M", 16, 64, 64), 1.4),
                sampling_case(Sampling("125M", 8, 64, 32), 1.0),
                sampling_case(Sampling("18M", 12, 64, 256), 1.0, MEAN_RESPONSE),
                sampling_case(Sampling("18M, 128k", 8, 64, 32), 1.0),
            ],
            "training": [
                training_case(Training("125M", 2, 64, 200, steps=1), 1.2),
                training_case(Training("125M", 1, 800, 130, steps=1), 1.2, ways=SMALL_TRAINING),
                training_case(Training("18M", 4, 64, 200, steps=1), 3.0),
                training_case(Training("18M", 2, 800, 130, steps=1), 3.0, ways=SMALL_TRAINING),
                *(
                    training_case(Training(shape, 1, 64, 200, num_responses=4, steps=1), 4.0, ways=SMALL_TRAINING)
                    for shape in ("18M", "125M")
                ),
                training_case(Training("18M, 128k", 2, 64, 200, steps=1), 1.0, ways=SMALL_TRAINING),
            ],
            "rounds": [round_case(Round("18M", 32, 64, 64))],
        },
    )


_SCORING_BARS = {"18M": (2.5, 4.0), "18M, 128k": (0, 0), "125M": (1.25, 2.0), "125M, 128k": (0, 0)}
"""Bars against the reference's way with short and with long prompts."""


def _scoring_cases(shape: str, bars: tuple[float, float]) -> list[Case]:
    share, prompts = (0.65, 2) if shape == "125M" else (0.0, 4 if shape == "18M" else 1)
    short = scoring_case(Scoring(shape, prompts, 64, 200), bars[0], share)
    return [short, scoring_case(Scoring(shape, prompts // 2, 800, 130), bars[1], share)] if prompts > 1 else [short]


def gpu() -> Suite:
    """1B and 8B, one way at a time; work that grows, to see where the rate stops growing."""
    cases = {
        "scoring": [
            *(scoring_case(Scoring("1B", prompts, 64, 200), 1.0) for prompts in (4, 16, 64)),
            scoring_case(Scoring("1B", 16, 800, 130), 2.0),
            scoring_case(Scoring("8B", 16, 64, 200), 1.0),
        ],
        "sampling": [
            *(sampling_case(Sampling("1B", prompts, 64, 128), 1.0) for prompts in (4, 16, 64)),
            sampling_case(Sampling("1B", 64, 64, 256), 1.0, MEAN_RESPONSE),
            sampling_case(Sampling("8B", 16, 64, 128), 1.0),
        ],
        "training": [
            *(training_case(Training("1B", prompts, 64, 200), 1.0) for prompts in (4, 16)),
            training_case(Training("1B", 4, 800, 130), 1.2),
            training_case(Training("1B", 2, 64, 200, num_responses=4), 3.0),
        ],
        "rounds": [round_case(Round("1B", 64, 64, 128))],
    }
    return Suite(3, "1B", {kind: [replace(case, together=False) for case in listed] for kind, listed in cases.items()})


def chosen(suite: Suite, kinds: Sequence[str]) -> list[Case]:
    """The cases of the kinds, in the suite's order."""
    return [case for kind in KINDS if kind in kinds for case in suite.cases[kind]]

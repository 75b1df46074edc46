"""Where the reference log-probabilities of training come from.

preferences, origin = with_reference(policy, given, anew, "sample", console)  # the policy, or its sampler
under_other_model(source, given, anew, vocabulary, objective, console)            # a model of its own
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel

from selfjudge.console import Console
from selfjudge.errors import ConfigError
from selfjudge.forward import causal_lm
from selfjudge.models import ModelSource, context_length, load_model
from selfjudge.preferences import PreferenceFile
from selfjudge.trainer import Objective, Policy, without_adapter

CHECKED = 32  # prompts on which the sampler's log-probabilities are compared with the trainer's
DRIFT = 0.01  # nats per response; above it all reference log-probabilities are computed again
AT_ONCE = 32  # prompts


def with_reference(
    policy: Policy, preferences: PreferenceFile, anew: PreferenceFile, reference: str, console: Console
) -> tuple[PreferenceFile, str]:
    """The preferences with reference log-probabilities and where these come from; computed ones are put into `anew`.

    `reference` is `sample` (kept where they agree with the policy's own), `start` or `base`.
    """
    if reference == "sample":
        drift = _drift(policy, preferences)
        if drift <= DRIFT:
            return preferences, "sample"
        found = "are missing" if math.isinf(drift) else f"differ by up to {drift:.2g} nats from the trainer's"
        console.say(f"train: the samples' own log-probs {found}; computing the reference anew")
    with without_adapter(policy.model) if reference == "base" else nullcontext():
        _compute(policy, preferences, anew, console)
    return anew, "base" if reference == "base" else "start"


def under_other_model(
    source: ModelSource,
    preferences: PreferenceFile,
    anew: PreferenceFile,
    vocabulary: Mapping[str, int],
    objective: Callable[[PreTrainedModel], Objective],
    console: Console,
) -> None:
    """Puts the preferences with the log-probabilities of another model into `anew`; its memory is free afterwards.

    `vocabulary` is that of the preferences' token ids. Raises ConfigError where the model has another one, or a context
    that is too short.
    """
    _compute_under(source, preferences, anew, vocabulary, objective, console)  # its frame held the last references
    clear_device_cache(garbage_collection=True)


def _compute_under(
    source: ModelSource,
    preferences: PreferenceFile,
    anew: PreferenceFile,
    vocabulary: Mapping[str, int],
    objective: Callable[[PreTrainedModel], Objective],
    console: Console,
) -> None:
    model, tokenizer = load_model(source)
    if tokenizer.get_vocab() != vocabulary:
        raise ConfigError(
            f"--reference-model {source.name}: its tokenizer is not that of --model, so the same token ids mean other "
            "text; give a model of the same family"
        )
    longest, room = max(preference.longest for preference in preferences), context_length(model)
    if longest > room:
        raise ConfigError(
            f"--reference-model {source.name}: takes in {room} tokens, the longest prompt with its response has "
            f"{longest}; lower --max-length to {room}"
        )
    policy = Policy(model, longest, objective(causal_lm(model)), console.say)
    with policy.forward:
        _compute(policy, preferences, anew, console)


def _compute(policy: Policy, preferences: PreferenceFile, anew: PreferenceFile, console: Console) -> None:
    with console.progress("reference", len(preferences), unit="prompt") as bar:
        for preference in policy.reference(preferences, AT_ONCE):
            anew.append(preference)
            bar.update()


def _drift(policy: Policy, preferences: PreferenceFile) -> float:
    """Largest difference of stored and computed log-probabilities on evenly spread prompts; inf for missing ones."""
    if any(math.isnan(logp) for preference in preferences for logp in preference.ref_logps):
        return math.inf
    spread = range(0, len(preferences), max(1, len(preferences) // CHECKED))
    checked = [preferences[index] for index in spread]
    computed = policy.reference(checked, at_once=CHECKED)
    pairs = zip(checked, computed, strict=True)
    return max(abs(a - b) for stored, own in pairs for a, b in zip(stored.ref_logps, own.ref_logps, strict=True))

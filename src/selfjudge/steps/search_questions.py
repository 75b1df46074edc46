"""Which wording of a question judges best: chosen on one part of the prompts, measured on the other.

    selfjudge search-questions --model path/to/model --input pairs.jsonl --out runs/questions

The folder gets `rows.jsonl` (every response with the log-odds of every wording as evidence), `results.json` and
`questions.toml`, which `--questions` reads. The held-out part is never chosen on: choosing among many wordings on the
rows that are reported would report the luckiest one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfjudge.backends import Backend, LabelRequest, LabelResult
from selfjudge.categories import classify
from selfjudge.config import SearchQuestionsConfig
from selfjudge.console import Console
from selfjudge.inputs import read_scorable
from selfjudge.judges.yes_no import score_of
from selfjudge.measures import Measure, interval_of, pair_differences
from selfjudge.questions import Questions, load_questions
from selfjudge.readers import content_id, hash_share
from selfjudge.records import CATEGORIES, Example, Score
from selfjudge.stats import credit
from selfjudge.steps import OpenModel, Summary, step_meta, versions
from selfjudge.steps.judge import judge_rows
from selfjudge.store import ids_entry, open_output, read_rows, write_json_atomic

ROWS, RESULTS, CHOSEN = "rows.jsonl", "results.json", "questions.toml"


def run(config: SearchQuestionsConfig, console: Console) -> Summary:
    """Scores every row that is not scored yet with all wordings; returns what was chosen and how good it is."""
    folder, questions = Path(config.out), load_questions(config.candidates)
    with read_scorable(config.input, ("responses", "gold"), config.limit) as examples:
        meta = step_meta("search-questions", config, input=examples.entry, candidates=_entry(config, questions))
        with open_output(folder / ROWS, meta) as output:
            if not output.finished:
                with OpenModel(console.say) as model:
                    judge_rows(examples, AllWordings(model.get(config), questions), output, console)
                rows = map(Example.from_json, read_rows(folder / ROWS))
                output.finish(choose(rows, questions, config.development))
    results = {"config": config.model_dump(), "figures": output.summary, "versions": versions()}
    write_json_atomic(folder / RESULTS, results)
    (folder / CHOSEN).write_text(as_toml(questions, output.summary), encoding="utf-8")
    return _shown(output.summary)


def _entry(config: SearchQuestionsConfig, questions: Questions) -> dict[str, str]:
    """The texts that are compared, for the meta: a file with other texts is another search."""
    texts = [questions.layout, questions.answer_format, *questions.yes, "", *questions.no]
    wordings = [text for name in CATEGORIES for text in ("", name, *questions.questions[name])]
    return ids_entry(config.candidates or "built-in", [*texts, *wordings])


class AllWordings:
    """A judge that asks every wording of the category's question about every response."""

    def __init__(self, backend: Backend, questions: Questions) -> None:
        self.backend = backend
        self.questions = questions

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with scores by the first wording, and those by every wording as evidence."""
        known = classify(self.backend, examples)
        requests = [
            self._request(example, index, wording)
            for example in known
            for index in range(len(example.responses))
            for wording in range(self._count(example))
        ]
        results = iter(self.backend.label_logprobs(requests))
        return [replace(example, scores=tuple(self._scores(example, results))) for example in known]

    def _count(self, example: Example) -> int:
        return len(self.questions.questions[str(example.category)])

    def _request(self, example: Example, index: int, wording: int) -> LabelRequest:
        """All wordings about one response stand together: they share request and response."""
        asked, text = self.questions.using(wording), example.responses[index].text
        render = partial(_messages, asked, example)
        return LabelRequest(f"{example.id}, response {index + 1}", render, text, (asked.yes, asked.no))

    def _scores(self, example: Example, results: Any) -> Iterable[Score]:
        for _ in example.responses:
            found: list[LabelResult] = [next(results) for _ in range(self._count(example))]
            scores = [score_of(result) for result in found]
            evidence = {
                "log_odds": [_or_none(score.value) for score in scores],
                "label_mass": [_or_none(score.label_mass) for score in scores],
            }
            yield replace(scores[0], truncated=any(s.truncated for s in scores), evidence=evidence)


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _messages(questions: Questions, example: Example, text: str) -> Any:
    return questions.separate(example.messages, text, str(example.category))


# --- choosing


@dataclass
class Part:
    """One category's pairs of one part of the prompts: per wording a credit (1, 0.5 or 0) for each pair."""

    credits: list[list[float]]
    prompts: list[int] = field(default_factory=list[int])
    """The prompt of each pair."""

    def add(self, example: Example) -> None:
        """All pairs of a right and a wrong response."""
        for wording, credits in enumerate(self.credits):
            pairs = pair_differences(_scored_by(example, wording))
            credits += credit([difference for _, difference in pairs]).tolist()
        prompt = self.prompts[-1] + 1 if self.prompts else 0
        self.prompts += [prompt] * (len(self.credits[0]) - len(self.prompts))

    def accuracy(self, wording: int) -> dict[str, Any]:
        """With its interval; NaN without a pair."""
        return interval_of(self.credits[wording], self.prompts)

    def difference(self, one: int, other: int) -> dict[str, Any]:
        """Accuracy of one wording minus that of another on the same pairs."""
        both = zip(self.credits[one], self.credits[other], strict=True)
        return interval_of([a - b for a, b in both], self.prompts)


def _scored_by(example: Example, wording: int) -> Example:
    scores = tuple(replace(score, value=_or_nan(score.evidence["log_odds"][wording])) for score in example.scores)
    return replace(example, scores=scores)


def is_development(example: Example, share: float) -> bool:
    """By a hash of the prompt: rows of one prompt stay together, and neither order nor number of rows matters."""
    return hash_share(f"search-questions\x1f{content_id(example.messages)}") < share


def choose(judged: Iterable[Example], questions: Questions, development: float) -> Summary:
    """Per category the wording with the best accuracy on the development part, and its figures on the held-out one."""
    wordings = {name: questions.questions[name] for name in CATEGORIES}
    chosen_on = {name: Part([[] for _ in texts]) for name, texts in wordings.items()}
    held_out = {name: Part([[] for _ in texts]) for name, texts in wordings.items()}
    masses = {name: [Measure() for _ in texts] for name, texts in wordings.items()}
    for example in judged:
        name = str(example.category)
        (chosen_on if is_development(example, development) else held_out)[name].add(example)
        for score in example.scores:
            for measure, mass in zip(masses[name], score.evidence["label_mass"], strict=True):
                measure.add([_or_nan(mass)])
    return {
        name: _category(texts, chosen_on[name], held_out[name], masses[name])
        for name, texts in wordings.items()
        if chosen_on[name].prompts or held_out[name].prompts
    }


def best(part: Part) -> int:
    """The wording with the highest accuracy, the first of equals; the first one where there is no pair."""

    def accuracy(wording: int) -> float:
        known = [credit for credit in part.credits[wording] if not math.isnan(credit)]
        return statistics.fmean(known) if known else -1.0

    return max(range(len(part.credits)), key=accuracy)


def _category(texts: Sequence[str], chosen_on: Part, held_out: Part, masses: Sequence[Measure]) -> Summary:
    """One category; `spread` is over all wordings on the held-out part, which nothing is chosen on."""
    wording = best(chosen_on)
    accuracies = [held_out.accuracy(index)["value"] for index in range(len(texts))]
    figures: Summary = {
        "wording": wording + 1,
        "question": texts[wording],
        "development": chosen_on.accuracy(wording),
        "held_out": held_out.accuracy(wording),
        "held_out_default": held_out.accuracy(0),
        "gain": held_out.difference(wording, 0),
        "spread": {"min": min(accuracies), "median": statistics.median(accuracies), "max": max(accuracies)},
        "by_wording": [
            {
                "question": text,
                "development": chosen_on.accuracy(index)["value"],
                "held_out": accuracies[index],
                "label_mass": masses[index].mean,
            }
            for index, text in enumerate(texts)
        ],
    }
    if not chosen_on.prompts:
        figures["reason"] = "no pair in the development part: the first wording stays"
    return figures


def _shown(summary: Summary) -> Summary:
    """Without the long list, which is in results.json."""
    return {name: {key: entry[key] for key in entry if key != "by_wording"} for name, entry in summary.items()}


def as_toml(questions: Questions, chosen: Summary) -> str:
    """A questions file with the chosen wording of each category, the first one where there was no row."""
    asked = {name: questions.questions[name][chosen.get(name, {"wording": 1})["wording"] - 1] for name in CATEGORIES}
    lines = [
        "# Written by selfjudge search-questions: the best wording of each category on its development part.",
        f"layout = {_quoted(questions.layout)}",
        f"answer_format = {_quoted(questions.answer_format)}",
        *([f"same = {_quoted(list(questions.same))}"] if questions.same else []),
        "",
        "[labels]",
        f"yes = {_quoted(list(questions.yes))}",
        f"no = {_quoted(list(questions.no))}",
        "",
        "[questions]",
        *[f"{name} = {_quoted(text)}" for name, text in asked.items()],
    ]
    return "\n".join(lines) + "\n"


def _quoted(value: str | list[str]) -> str:
    """As JSON, whose texts and lists of texts TOML reads the same; DEL alone needs an escape there."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

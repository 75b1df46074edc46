"""Small run folders made by hand, with figures that can be worked out in the head."""

import json

from selfjudge.config import AlignConfig
from selfjudge.store import StepMeta, open_output, write_json_atomic

QUESTIONS = {"q1": "math", "q2": "math", "q3": "chat", "q4": "chat"}
MARGINS = {1: 8.0, 2: 6.0}
"""Best minus worst: a fall of 25 %."""


def write_run(folder, rounds=2, truth=True, judge="yes-no", texts=None, **options):
    """A finished run: in round r the first r + 1 of 4 questions are answered right by all samples."""
    config = AlignConfig(model="lab", prompts="mine.jsonl", out=str(folder), rounds=rounds, judge=judge, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "run.json", {"config": config.model_dump(), "versions": {"selfjudge": "0.1.0"}})
    write_step(folder / "start" / "evaluation.jsonl", evaluation_rows(1, truth), evaluation_summary(1, truth))
    for number in range(1, rounds + 1):
        write_round(folder / f"round-{number}", number, truth, texts or {})
    return folder


def write_step(path, rows, summary, done=True):
    with open_output(path, StepMeta("step", {})) as output:
        output.append(rows)
        if done:
            output.finish(summary)


def write_round(folder, number, truth, texts):
    scored = [scored_row(index, key, number, truth, texts) for index, key in enumerate(QUESTIONS)]
    selected = [selected_row(row) for row in scored[:3]]
    samples = {"prompts": 4, "responses": 12, "mean_tokens": 2.5, "unfinished_share": 1 / 12, "distinct_share": 0.75}
    judged = {"prompts": 4, "responses": 12, "missing": 1, "truncated": 3, "mean_score": 0.5}
    picked = {"prompts": 3, "pairs": 3, "mean_margin": MARGINS[number], "mean_tokens_best": 2.25}
    picked |= {"mean_tokens_worst": 3.25, "best_right_share": 2 / 3 if truth else None}
    write_step(folder / "samples.jsonl", [without(row, "scores") for row in scored], samples)
    write_step(folder / "scored.jsonl", scored, judged | {"mean_label_mass": 0.9375, "mean_margin": 7.0})
    write_step(folder / "selected.jsonl", selected, picked | {"dropped": {"fewer than 2 finished responses": 1}})
    write_step(folder / "training.jsonl", training_rows(), training_summary())
    rows, summary = evaluation_rows(number + 1, truth), evaluation_summary(number + 1, truth)
    write_step(folder / "evaluation.jsonl", rows, summary)


def scored_row(index, key, number, truth, texts):
    """Best (twice), worst and an unfinished response without a score; the best of q3 is wrong."""
    half = MARGINS[number] / 2
    answers = [texts.get(key, f"good {key}"), texts.get(key, f"good {key}"), f"bad {key}"]
    responses = [{"text": text, "token_ids": [5, 6]} for text in answers]
    row = {"id": key, "category": QUESTIONS[key], "messages": [{"role": "user", "content": f"Question {key}?"}]}
    cut = {"text": f"cut {key}", "token_ids": [7], "finished": False}
    row["responses"] = [*responses[: 2 if index == 3 else 3], cut]
    scores = [{"value": half, "label_mass": 0.9}] * 2 + [{"value": -half, "label_mass": 0.9}]
    unscored = {"value": None, "label_mass": None, "reason": "prompt too long"}
    row["scores"] = [*scores[: 2 if index == 3 else 3], unscored]
    if truth:
        row["reference"] = f"bad {key}" if key == "q3" else row["responses"][0]["text"]
    return row


def selected_row(row):
    kept = {"responses": [row["responses"][0], row["responses"][2]], "scores": [row["scores"][0], row["scores"][2]]}
    return row | kept | {"strengths": [3.0, -3.0]}


def training_rows():
    figures = {"accuracy": 0.5, "log_ratio_difference": 0.25, "chosen_change": 0.125, "rejected_change": -0.125}
    figures |= {"forward_kl": 0.375, "grad_norm": 1.5, "clipped_share": 0.25}
    steps = [{"id": f"step-{n}", "kind": "step", "step": n, "loss": 0.7 - n / 100} | figures for n in (1, 2, 3)]
    steps = [row | {"target_correlation": 0.5 if row["step"] > 1 else None} for row in steps]
    return [*steps, {"id": "validation-3", "kind": "validation", "step": 3, "eval_loss": 0.6875, "eval_accuracy": 0.75}]


def training_summary():
    figures = {"steps": 3, "first_loss": 0.69, "last_loss": 0.67, "accuracy": 0.5, "log_ratio_difference": 0.25}
    changes = {"chosen_change": 0.125, "rejected_change": -0.125}
    changes |= {"forward_kl": 0.375, "target_correlation": 0.5, "grad_norm": 1.5, "clipped_share": 0.25}
    return figures | changes | {"validation_loss": 0.6875, "validation_accuracy": 0.75}


def evaluation_rows(right, truth):
    """The first `right` questions have both samples right."""
    rows = []
    for index, (key, category) in enumerate(QUESTIONS.items()):
        verdict = {"right": index < right} if truth else {}
        answer = {"text": "an answer", "tokens": 2, "finished": True} | verdict
        samples = [answer | {"log_odds": 1.5, "label_mass": 0.99}] * 2
        row = {"id": key, "category": category, "prompt": "?", "reference": "an answer" if truth else None}
        rows.append(row | {"greedy": answer, "samples": samples, "judged": [], "differences": []})
    return rows


def evaluation_summary(right, truth):
    own = {"questions": 4, "self_log_odds": 1.5 + right, "self_p_yes": 0.8125, "label_mass": 0.99, "mean_tokens": 2.0}
    own |= {"unfinished_share": 0.0}
    if not truth:
        return own
    share = right / 4
    accuracy = {"value": share, "low": share - 0.125, "high": share + 0.125, "n": 4}
    judged = {"value": 0.875, "low": 0.8, "high": 0.9, "n": 8}
    figures = own | {"sampled": accuracy, "greedy": accuracy | {"value": share - 0.0625}, "any_right": accuracy}
    figures |= {"judge_accuracy": judged, "judge_accuracy_typo": judged | {"value": 0.8375}, "judge_strict": 0.85}
    figures |= {"pairs": 8, "ties": 1}
    return figures | {"by_category": {name: figures | {"questions": 2} for name in ("chat", "math")}}


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def unfinish(path):
    """As a kill leaves it: half of the last line is missing, the meta says not done."""
    path.write_bytes(path.read_bytes()[:-9])
    meta_path = path.with_suffix(".meta.json")
    meta = json.loads(meta_path.read_text())
    meta_path.write_text(json.dumps(meta | {"done": False, "summary": {}}))

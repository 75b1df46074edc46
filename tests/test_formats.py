"""Rows as other projects write them: each is read as the prompt, the responses and what is known of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from selfjudge.errors import DataError
from selfjudge.forms import example_from_row
from selfjudge.readers import read_examples
from selfjudge.records import Example
from selfjudge.shapes import MARKS, own_columns
from selfjudge.values import RowError

SKY = "What color is the sky?"
ASKED = {"role": "user", "content": SKY}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def turns(example: Example) -> list[tuple[str, str]]:
    return [tuple(message) for message in example.messages]


def is_sky_pair(row: dict[str, Any], before: tuple[tuple[str, str], ...] = ()) -> Example:
    """The row asks for the color of the sky, prefers blue and rejects green."""
    example = example_from_row(row)
    assert turns(example) == [*before, ("user", SKY)]
    assert [response.text for response in example.responses] == ["It is blue.", "It is green."]
    assert example.gold == (0,)
    return example


def values(example: Example) -> list[float]:
    return [score.value for score in example.scores]


BEFORE = (("user", "Hi"), ("assistant", "Hello"))
SYSTEM = (("system", "Be brief."),)

# --- pairs


def test_trl() -> None:
    """huggingface/trl, docs/source/dataset_formats.md: standard and conversational, explicit and implicit prompt."""
    is_sky_pair({"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."})
    is_sky_pair({"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN]})
    is_sky_pair({"prompt": [*EARLIER, ASKED], "chosen": [BLUE], "rejected": [GREEN]}, BEFORE)
    is_sky_pair({"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]})


def test_a_prompt_that_only_the_texts_imply_is_refused() -> None:
    """huggingface/trl: of {"chosen": "The sky is blue.", "rejected": "The sky is green."} it cuts the common start."""
    with pytest.raises(RowError, match="no prompt: found columns chosen, rejected"):
        example_from_row({"chosen": "The sky is blue.", "rejected": "The sky is green."})


def test_ultrafeedback_binarized() -> None:
    """HuggingFaceH4/ultrafeedback_binarized, the features in its README."""
    example = is_sky_pair(
        {
            "prompt": SKY,
            "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
            "chosen": [ASKED, BLUE],
            "rejected": [ASKED, GREEN],
            "messages": [ASKED, BLUE],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        }
    )
    assert values(example) == [8.5, 3.0]


def test_argilla() -> None:
    """argilla/ultrafeedback-binarized-preferences (instruction, chosen_response) and its -cleaned (chosen-rating)."""
    pair = {"chosen_response": "It is blue.", "rejected_response": "It is green."}
    ratings = {"chosen_avg_rating": 4.75, "rejected_avg_rating": 2.0, "chosen_model": "gpt-4"}
    example = is_sky_pair({"source": "sharegpt", "instruction": SKY, **pair, **ratings})
    assert values(example) == [4.75, 2.0]
    assert example.tags == {"source": "sharegpt", "chosen_model": "gpt-4"}
    cleaned = {"prompt": SKY, "chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]}
    assert values(is_sky_pair({**cleaned, "chosen-rating": 5.0, "rejected-rating": 4.25})) == [5.0, 4.25]


def test_a_rating_that_is_missing_is_not_a_number() -> None:
    pair = {"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."}
    scores = is_sky_pair({**pair, "score_chosen": "4.5", "score_rejected": None}).scores
    assert (scores[0].value, scores[0].reason) == (4.5, None)
    assert math.isnan(scores[1].value)
    assert scores[1].reason == "no rating in the file"
    assert is_sky_pair({**pair, "score_chosen": "N/A"}).scores == ()
    several = example_from_row({**pair, "chosen": ["a", "b"], "score_chosen": 1.0})
    assert several.scores == ()
    own = is_sky_pair({**pair, "score_chosen": 1.0, "scores": [{"value": 7}, {"value": 6}]})
    assert values(own) == [7, 6]


def test_a_margin_becomes_strengths() -> None:
    """z = 3 nats is the difference of 1.5 and -1.5."""
    pair = {"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."}
    assert is_sky_pair({**pair, "margin_nats": 3.0}).strengths == (1.5, -1.5)
    assert is_sky_pair({**pair, "margin_nats": None}).strengths == ()


def test_llama_factory() -> None:
    """hiyouga/LLaMA-Factory, data/README.md: alpaca with system and history, sharegpt ranking with turns or texts."""
    alpaca = {"instruction": "What color", "input": "is it?", "chosen": "It is blue.", "rejected": "It is green."}
    example = example_from_row({**alpaca, "system": "Be brief.", "history": [["Hi", "Hello"]]})
    assert turns(example) == [*SYSTEM, *BEFORE, ("user", "What color\n\nis it?")]
    assert example.gold == (0,)
    asked = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": SKY}]
    sides = {"chosen": {"from": "gpt", "value": "It is blue."}, "rejected": {"from": "gpt", "value": "It is green."}}
    is_sky_pair({"conversations": asked, **sides}, BEFORE)
    is_sky_pair({"conversations": [{"from": "system", "value": "Be brief."}, *asked], **sides}, SYSTEM + BEFORE)
    is_sky_pair({"conversations": asked, "chosen": "It is blue.", "rejected": "It is green."}, BEFORE)


def test_axolotl() -> None:
    """axolotl-ai-cloud/axolotl, docs/rlhf.qmd: chat_template.default, chatml.intel, chatml.icr, user_defined."""
    is_sky_pair({"messages": [*EARLIER, ASKED], "chosen": BLUE, "rejected": GREEN}, BEFORE)
    pair = {"system": "Be brief.", "chosen": "It is blue.", "rejected": "It is green."}
    for column in ("question", "input", "prompt"):
        is_sky_pair({column: SKY, **pair}, SYSTEM)


def test_openrlhf() -> None:
    """OpenRLHF/OpenRLHF, datasets/reward_dataset.py; `--input_key context_messages` of its prompt collection."""
    is_sky_pair({"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN], "margin": 2})
    is_sky_pair({"input": [*EARLIER, ASKED], "chosen": [BLUE], "rejected": [GREEN]}, BEFORE)
    assert turns(example_from_row({"context_messages": [*EARLIER, ASKED]})) == [*BEFORE, ("user", SKY)]


def test_ms_swift() -> None:
    """modelscope/ms-swift, Custom-dataset.md and preprocessor/core.py: rejected_response, rejected_messages, query."""
    is_sky_pair({"messages": [*EARLIER, ASKED, BLUE], "rejected_response": "It is green."}, BEFORE)
    both = {"messages": [*EARLIER, ASKED, BLUE], "rejected_messages": [*EARLIER, ASKED, GREEN]}
    is_sky_pair(both, BEFORE)
    old = {"query": SKY, "response": "It is blue.", "rejected_response": "It is green.", "history": [["Hi", "Hello"]]}
    is_sky_pair(old, BEFORE)


def test_anthropic_hh() -> None:
    """Anthropic/hh-rlhf: one text with turns; a prompt that ends with an open `Assistant:`, as Nectar writes it."""
    before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What color is the sky?\n\nAssistant:"
    is_sky_pair({"chosen": f"{before} It is blue.", "rejected": f"{before} It is green."}, BEFORE)
    is_sky_pair({"prompt": before, "chosen": "It is blue.", "rejected": "It is green."}, BEFORE)


def test_reward_benchmarks() -> None:
    """allenai/reward-bench as texts and as messages; THU-KEG/RM-Bench with three of each."""
    row = {"prompt": SKY, "chosen_model": "a", "rejected_model": "b", "subset": "hep-cpp", "id": 7}
    example = is_sky_pair({**row, "chosen": "It is blue.", "rejected": "It is green."})
    assert (example.id, example.tags["subset"]) == ("7", "hep-cpp")
    is_sky_pair({**row, "chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]})
    styles = example_from_row({**row, "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]})
    assert (len(styles.responses), styles.gold) == (6, (0, 1, 2))


# --- ranked and rated


def test_nemo_rl() -> None:
    """NVIDIA-NeMo/RL, docs/guides/dpo.md: the least rank is preferred; the binary one has a text each."""
    ranked = [{"rank": 0, "completion": [BLUE]}, {"rank": 1, "completion": [GREEN]}]
    is_sky_pair({"context": [*EARLIER, ASKED], "completions": ranked}, BEFORE)
    is_sky_pair({"context": SKY, "completions": ranked[::-1]})
    third = {"rank": 1, "completion": [EARLIER[1]]}
    example = example_from_row({"context": [ASKED], "completions": [third, *ranked]})
    assert ([response.text for response in example.responses][1], example.gold) == ("It is blue.", (1,))
    assert example_from_row({"context": [ASKED], "completions": [third, ranked[1]]}).gold == ()
    is_sky_pair({"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."})


@pytest.mark.parametrize(("preference", "gold"), [(-3, (0,)), (-1, (0,)), (0, ()), (2, (1,))])
def test_helpsteer3(preference: int, gold: tuple[int, ...]) -> None:
    """nvidia/HelpSteer3, and how NVIDIA-NeMo/RL reads it: below 0 the first response is better, 0 prefers neither."""
    row = {"domain": "general", "language": "english", "context": [*EARLIER, ASKED], "individual_preference": []}
    pair = {"response1": "It is blue.", "response2": "It is green.", "overall_preference": preference}
    example = example_from_row({**row, **pair})
    assert turns(example) == [*BEFORE, ("user", SKY)]
    assert [response.text for response in example.responses] == ["It is blue.", "It is green."]
    assert (example.gold, example.tags) == (gold, {"domain": "general", "language": "english"})


def completion(text: str, overall: Any, *ratings: str) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    rated = {aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in zip(aspects, ratings, strict=False)}
    return {"model": "m", "principle": "helpfulness", "response": text, "annotations": rated, "overall_score": overall}


@pytest.mark.parametrize(
    ("completions", "gold", "scores"),
    [
        ([("a", 7.5, "4", "4"), ("b", 9, "5", "N/A"), ("c", 9, "5", "5")], (1, 2), [7.5, 9, 9]),
        ([("a", 10, "1", "2"), ("b", 8, "5", "5")], (), [10, 8]),
        ([("a", 8, "5"), ("b", 8, "5")], (), [8, 8]),
        ([("a", None, "4", "5"), ("b", None, "4", "4")], (0,), [4.5, 4]),
        ([("a", 8), ("b", 6)], (0,), [8, 6]),
        ([("a", None, "4"), ("b", 9, "5")], (1,), [math.nan, 9]),
        ([("a", 3), ("b", None)], None, [3, math.nan]),
        ([("a", None), ("b", None)], None, []),
    ],
)
def test_ultrafeedback(completions: list[Any], gold: tuple[int, ...] | None, scores: list[float]) -> None:
    """OpenBMB/UltraFeedback, README: the best by the overall score and by the mean of the aspects; else none is.

    The second row is its known slip: an overall 10 beside a mean of 1.5. Means of the first: 4, 5 (N/A left out), 5.
    """
    row = {"source": "sharegpt", "instruction": SKY, "models": ["m"], "correct_answers": ["None"]}
    example = example_from_row({**row, "completions": [completion(*entry) for entry in completions]})
    assert [response.text for response in example.responses] == [entry[0] for entry in completions]
    assert example.gold == gold
    assert values(example) == pytest.approx(scores, nan_ok=True)


def test_nectar() -> None:
    """berkeley-nest/Nectar as axolotl-ai-cloud/axolotl documents it (zephyr.nectar)."""
    answers = [{"answer": "It is green.", "rank": 2.0}, {"answer": "It is blue.", "rank": 1.0}]
    example = example_from_row({"prompt": f"\n\nHuman: {SKY}\n\nAssistant: ", "answers": answers})
    assert (turns(example), example.gold) == ([("user", SKY)], (1,))


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"prompt": SKY, "completion": "It is blue.", "label": True}, (0,)),
        ({"prompt": [ASKED], "completion": [GREEN], "label": False}, ()),
        ({"messages": [ASKED, BLUE], "label": True}, (0,)),
        ({"instruction": SKY, "output": "It is green.", "kto_tag": False}, ()),
        ({"prompt": SKY, "completion": "It is blue.", "label": 1}, None),
        ({"prompt": SKY, "completion": "It is blue.", "label": "True"}, None),
        ({"instruction": SKY, "output": "It is blue.", "label": True}, None),
        ({"prompt": SKY, "completions": ["It is blue.", "It is green."], "label": True}, None),
        ({"messages": [ASKED], "label": True}, None),
    ],
)
def test_kto(row: dict[str, Any], gold: tuple[int, ...] | None) -> None:
    """huggingface/trl unpaired preference, ms-swift messages with a label, LLaMA-Factory's kto_tag; no other label."""
    assert example_from_row(row).gold == gold


# --- half rows


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (
            {"instruction": "a", "chosen_response": "b"},
            "(Argilla), but without rejected_response; such a row has instruction or prompt, chosen_response",
        ),
        ({"completions": [{"rank": 0, "completion": [BLUE]}]}, "NeMo-RL), but without context; such a row has context"),
        (
            {"context": [ASKED], "completions": [{"completion": [BLUE]}]},
            "NeMo-RL): 'completions.rank' must be a number, found nothing; such a row has",
        ),
        (
            {"context": [ASKED], "completions": [{"rank": 0, "completion": [ASKED, BLUE]}]},
            "must hold one assistant turn, found user, assistant",
        ),
        (
            {"context": "a", "response1": "b", "overall_preference": 1},
            "recognised as HelpSteer3, but without response2; such a row has context",
        ),
        (
            {"context": "a", "response1": "b", "response2": "c", "overall_preference": 4},
            "overall_preference must be from -3 to 3, found 4",
        ),
        (
            {"instruction": "a", "completions": [{"response": 5}]},
            "UltraFeedback: 'completions.response' must be a text",
        ),
        ({"completions": [{"response": "b"}]}, "recognised as UltraFeedback, but without instruction"),
        ({"prompt": "a", "answers": [{"answer": "b", "rank": "c"}]}, "'answers.rank' must be a number, found a text"),
        ({"messages": [ASKED], "rejected_response": "b"}, "ms-swift: the messages must end with the chosen answer"),
        ({"prompt": "a", "rejected_response": "b"}, "ms-swift: no chosen answer; such a row has messages"),
        ({"rejected_messages": [ASKED, BLUE]}, "ms-swift: 'messages' must be a list of messages, found nothing"),
        (
            {"conversations": [{"from": "tool", "value": "a"}]},
            "unknown speaker 'tool' in 'conversations'; allowed: human, user, gpt, assistant, system; such",
        ),
        ({"conversations": [{"from": "human", "value": 1}]}, "'conversations.value' must be a text, found a number"),
        ({"conversations": "a"}, "'conversations' must be a list of objects, found a text"),
        (
            {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}},
            "chosen and rejected are needed together",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"},
            "a transcript (Anthropic HH): only 'chosen' is a text that begins with '\\n\\nHuman:'; such a row has",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "they must share the prompt",
        ),
        ({"instruction": "a", "history": "b"}, "'history' must be a list of [request, answer], found a text"),
        ({"instruction": "a", "history": [["b"]]}, "'history' must hold pairs [request, answer], found 1 texts"),
    ],
)
def test_half_rows(tmp_path: Path, row: dict[str, Any], part: str) -> None:
    """One line: the row, what it was taken for, what is missing, what such a row has."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        list(read_examples(path))
    message = str(error.value)
    assert message.startswith(f"{path}, row 2: ")
    assert "\n" not in message
    assert part in message


# --- rows that stay as they are


@pytest.mark.parametrize(
    "row",
    [
        {"question": SKY, "context": "A passage.", "answer": "blue"},
        {"id": "1", "messages": [ASKED], "responses": [{"text": "a"}], "scores": [{"value": 1.0}]},
        {"prompt": SKY, "completions": ["a", {"completion": "b", "model": "m"}]},
        {"prompt": SKY, "chosen": "a", "rejected": "b"},
        {"messages": [ASKED], "conversations": [{"from": "human", "value": "another"}]},
        {"prompt": SKY, "answers": ["a"]},
        {"prompt": SKY, "chosen": "a", "rejected": "b", "rejected_response": "c"},
    ],
)
def test_other_rows_go_through_untouched(row: dict[str, Any]) -> None:
    assert own_columns(row) is row


def test_parquet_columns_that_a_row_lacks_do_not_count() -> None:
    """A table of several shapes has every column in every row, null where it is not used."""
    row = dict.fromkeys(MARKS) | {"context": None, "response1": None} | {"prompt": SKY}
    assert own_columns(row) is row
    is_sky_pair(row | {"chosen_response": "It is blue.", "rejected_response": "It is green."})

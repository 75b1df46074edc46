"""Examples as JSON and back."""

import json
import math

from selfjudge.records import Example, Message, Response, Score

ASK = (Message("user", "x"),)
FULL = Example(
    id="1",
    messages=(Message("system", "Be brief."), Message("user", "2 + 2?")),
    category="math",
    responses=(Response("4", (5, 2), -0.5), Response("", (7,), -3.0, finished=False), Response("five")),
    gold=(0,),
    reference="4",
    prompt_ids=(1, 2, 3),
    scores=(Score(1.5, 0.9), Score(-2.0, 0.8, truncated=True), Score(0.25, reason="why")),
    strengths=(1.0, 0.0, -1.0),
    tags={"style": [1, {"deep": None}]},
)


def test_round_trip_through_text():
    assert Example.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL


def test_a_bare_prompt_has_no_empty_fields():
    bare = Example("1", ASK)
    assert bare.to_json() == {"id": "1", "messages": [{"role": "user", "content": "x"}]}
    assert Example.from_json(bare.to_json()) == bare


def test_missing_scores_are_null():
    """NaN is not JSON; it comes back as NaN with its reason."""
    row = Example("1", ASK, scores=(Score(math.nan, reason="no grade found"),)).to_json()
    assert row["scores"] == [{"value": None, "label_mass": None, "reason": "no grade found"}]
    (score,) = Example.from_json(json.loads(json.dumps(row))).scores
    assert math.isnan(score.value)
    assert math.isnan(score.label_mass)
    assert score.reason == "no grade found"


def test_no_right_response_is_not_the_same_as_not_known():
    assert Example.from_json(Example("1", ASK, gold=()).to_json()).gold == ()
    assert Example.from_json(Example("1", ASK).to_json()).gold is None


def test_zeros_are_kept():
    """0 is a value, not nothing."""
    zero = Example("1", ASK, responses=(Response("", (), 0.0),), scores=(Score(0.0, 0.0),), strengths=(0.0,))
    assert Example.from_json(zero.to_json()) == zero

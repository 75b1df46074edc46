"""Which responses are kept, in which order, and why a prompt is dropped."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from selfjudge.answer_keys import ANSWER_KEYS
from selfjudge.errors import ConfigError, DataError
from selfjudge.records import Example, Message, Response, Score
from selfjudge.selection import SELECTIONS, Dropped, Selected, SelectionRule, answer_counts, select


def scored(*rows: tuple[str, float], gold: tuple[int, ...] | None = None) -> Example:
    return Example(
        id="p1",
        messages=(Message("user", "2 + 2?"),),
        category="math",
        responses=tuple(Response(text) for text, _ in rows),
        scores=tuple(Score(log_odds) for _, log_odds in rows),
        gold=gold,
        reference="4",
        prompt_ids=(1, 2),
        tags={"source": "test"},
    )


def unfinished(example: Example, *indices: int) -> Example:
    responses = (replace(r, finished=i not in indices) for i, r in enumerate(example.responses))
    return replace(example, responses=tuple(responses))


def kept(example: Example, rule: SelectionRule) -> Example:
    result = select(example, rule)
    assert isinstance(result, Selected)
    return result.example


def texts(example: Example) -> list[str]:
    return [response.text for response in example.responses]


FOUR = scored(("a", 1.0), ("b", -3.0), ("c", 5.0), ("d", 1.0), gold=(2, 1))


def test_best_worst():
    """Scores 5 and -3 at T = 2: z = 8 / 2 = 4 nats, centred +2 and -2."""
    example = kept(FOUR, SelectionRule(method="best-worst", temperature=2.0))
    assert texts(example) == ["c", "b"]
    assert example.strengths == (2.0, -2.0)
    assert [score.value for score in example.scores] == [5.0, -3.0]


def test_all_pairs_keeps_all_sorted_ties_by_index():
    """Mean of 5, 1, 1, -3 is 1."""
    example = kept(FOUR, SelectionRule(method="all-pairs"))
    assert texts(example) == ["c", "a", "d", "b"]
    assert example.strengths == (4.0, 0.0, 0.0, -4.0)


def test_tie_at_the_top_goes_to_the_first():
    assert texts(kept(scored(("x", 0.0), ("y", 2.0), ("z", 2.0)), SelectionRule())) == ["y", "x"]


def test_the_rest_of_the_example_is_kept_and_gold_is_remapped():
    """Gold were responses 2 and 1 (c and b); in the order c, a, d, b they are 0 and 3."""
    example = kept(FOUR, SelectionRule(method="all-pairs"))
    assert example.gold == (0, 3)
    same = replace(example, responses=FOUR.responses, scores=FOUR.scores, strengths=(), gold=FOUR.gold)
    assert same == FOUR


def test_gold_that_is_not_kept_is_known_and_none():
    assert kept(replace(FOUR, gold=(0,)), SelectionRule()).gold == ()
    assert kept(replace(FOUR, gold=None), SelectionRule()).gold is None


def test_unfinished_responses_are_dropped_unless_asked():
    example = unfinished(FOUR, 2)
    assert texts(kept(example, SelectionRule())) == ["a", "b"]
    assert texts(kept(example, SelectionRule(keep_unfinished=True))) == ["c", "b"]


def test_missing_scores_are_dropped():
    example = scored(("a", math.nan), ("b", 1.0), ("c", 0.0), ("d", math.inf))
    assert texts(kept(example, SelectionRule(method="all-pairs"))) == ["b", "c"]


def test_of_equal_texts_the_first_usable_is_kept():
    """Text a: the first is unfinished, the second has no score, the third counts (2.0), the fourth is a copy."""
    example = unfinished(scored(("a", 9.0), ("a", math.nan), ("a", 2.0), ("a", -8.0), ("b", 0.0)), 0)
    result = kept(example, SelectionRule(method="all-pairs"))
    assert [(r.text, s.value) for r, s in zip(result.responses, result.scores, strict=True)] == [
        ("a", 2.0),
        ("b", 0.0),
    ]


def test_agreement_lifts_the_frequent_answer():
    """Counts: a 3, b 1, c 1. With a = 2: 1 + 2 log 3 = 3.197 for a beats 3 for b; with a = 0, b is best. c is 0."""
    example = scored(("a", 1.0), ("b", 3.0), ("a", 1.0), ("c", 0.0), ("a", 1.0))
    assert texts(kept(example, SelectionRule(method="all-pairs"))) == ["b", "a", "c"]
    result = kept(example, SelectionRule(method="all-pairs", agreement=2.0, temperature=2.0))
    assert texts(result) == ["a", "b", "c"]
    assert result.strengths[0] - result.strengths[1] == pytest.approx((1 + 2 * math.log(3) - 3) / 2)
    assert result.strengths[1] - result.strengths[2] == pytest.approx(1.5)


def test_agreement_among_distinct_answers_is_the_plain_score():
    plain = kept(FOUR, SelectionRule(method="all-pairs"))
    assert kept(FOUR, SelectionRule(method="all-pairs", agreement=2.0)) == plain


def test_agreement_counts_by_key():
    """Final numbers: 4 three times, 5 and 7 once. With a = 2: 1 + 2 log 3 = 3.197 for a 4 beats 3 for 5; 7 has 0.

    Letter by letter nothing repeats, so the exact key ranks by the score alone.
    """
    example = scored(("It is 4.", 1.0), ("5", 3.0), ("2 + 2 = 4", 0.5), ("4.0", -1.0), ("7", 0.0))
    assert answer_counts(example, "final-number") == [3, 1, 3, 3, 1]
    by_number = SelectionRule(method="all-pairs", agreement=2.0, agreement_key="final-number")
    result = kept(example, by_number)
    assert texts(result) == ["It is 4.", "5", "2 + 2 = 4", "4.0", "7"]
    assert result.strengths[0] - result.strengths[1] == pytest.approx(1 + 2 * math.log(3) - 3)
    assert result.strengths[3] - result.strengths[4] == pytest.approx(-1 + 2 * math.log(3))
    assert texts(kept(example, replace(by_number, agreement_key="exact")))[0] == "5"


@pytest.mark.parametrize("key", ANSWER_KEYS)
def test_where_no_answer_repeats_every_key_ranks_by_the_score_alone(key: str):
    for method in SELECTIONS:
        rule = SelectionRule(method=method, temperature=1.7, min_margin=0.5)
        assert select(FOUR, replace(rule, agreement=2.0, agreement_key=key)) == select(FOUR, rule)


def test_margin_filter_is_in_nats_after_the_temperature():
    """8 nats of log-odds at T = 2 are a margin of 4: 4 passes, 4.1 does not."""
    assert isinstance(select(FOUR, SelectionRule(temperature=2.0, min_margin=4.0)), Selected)
    assert select(FOUR, SelectionRule(temperature=2.0, min_margin=4.1)) == Dropped("margin below min_margin")


def test_reasons_are_countable():
    examples = [
        scored(),
        scored(("a", 1.0)),
        unfinished(scored(("a", 1.0), ("b", 0.0)), 1),
        scored(("a", math.nan), ("b", 0.0)),
        scored(("a", 1.0), ("a", 0.0)),
        scored(("a", 1.0), ("b", 1.0)),
        scored(("a", 1.0), ("b", 0.0)),
    ]
    results = [select(example, SelectionRule(min_margin=2.0)) for example in examples]
    assert Counter(result.reason for result in results if isinstance(result, Dropped)) == {
        "fewer than 2 finished responses": 3,
        "fewer than 2 scored responses": 1,
        "fewer than 2 distinct responses": 1,
        "all responses equally strong": 1,
        "margin below min_margin": 1,
    }


def test_unscored_example_is_an_error():
    with pytest.raises(DataError, match="'p1' has 4 responses but 0 scores; judge"):
        select(replace(FOUR, scores=()), SelectionRule())


def test_every_problem_of_a_rule_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        SelectionRule(method="best", temperature=0.0, min_margin=-1.0, agreement=math.nan, agreement_key="words")
    message = str(caught.value)
    assert "method must be one of best-worst, all-pairs, found 'best'" in message
    assert all(name in message for name in ("temperature", "min_margin", "agreement"))
    assert "agreement_key must be one of exact, final-number, last-line, normalised, found 'words'" in message


def test_registry():
    assert {name: tuple(keep([2, 0, 1])) for name, keep in SELECTIONS.items()} == {
        "best-worst": (2, 1),
        "all-pairs": (2, 0, 1),
    }

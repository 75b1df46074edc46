"""The official benchmarks: hand-solved figures, order that does not matter, and rows that are refused by name."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import done

from selfjudge.benchmarks import BENCHMARKS, rewardbench, rewardbench2, rm_bench
from selfjudge.benchmarks.estimates import estimate, weighted_mean
from selfjudge.benchmarks.rewardbench2 import Margins, best_of_credit, ties_terms
from selfjudge.cli import main
from selfjudge.errors import DataError
from selfjudge.records import Example, Message, Response, Score


def judged(scores: Sequence[float], right: int = 1, **tags: Any) -> Example:
    """An example whose first `right` responses are right, with these scores."""
    return Example(
        id=f"{tags}-{scores}",
        messages=(Message("user", "x"),),
        responses=tuple(Response(f"response {index}") for index in range(len(scores))),
        gold=tuple(range(right)),
        scores=tuple(Score(value) for value in scores),
        tags=tags,
    )


def pairs(subset: str, count: int, right: int, ties: int = 0) -> list[Example]:
    """`count` pairs of which `right` are right, then `ties` tied and the others wrong."""
    chosen = [1.0] * right + [0.0] * ties + [-1.0] * (count - right - ties)
    return [judged([score, 0.0], subset=subset) for score in chosen]


def whole(**right: int) -> list[Example]:
    """All 2,985 pairs, right where `right` does not give the number of a subset (its - written as _)."""
    numbers = {name: right.get(name.replace("-", "_"), rows) for name, rows in rewardbench.ROWS.items()}
    return [row for name, rows in rewardbench.ROWS.items() for row in pairs(name, rows, numbers[name])]


# RewardBench


def test_official_composition() -> None:
    """358 + 456 + 740 + 1431 = 2985; mathematics weighs as much as six languages of 164: 984."""
    totals = {name: sum(subsets.values()) for name, subsets in rewardbench.SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1431}
    assert (rewardbench.WEIGHTS["math-prm"], rewardbench.ROWS["math-prm"]) == (984, 447)


def test_composition_is_that_of_the_published_file(shared_data: Path) -> None:
    published = json.loads((shared_data / "rewardbench" / "composition.json").read_text())
    assert {name: list(subsets) for name, subsets in rewardbench.SECTIONS.items()} == published["sections"]
    assert published["true_rows"] == rewardbench.ROWS
    assert published["weights_in_section"] == rewardbench.WEIGHTS


def test_sections_are_weighted_by_official_rows() -> None:
    """All right but mathematics (149 of 447 = 1/3) and mt-bench-hard (0 of 37).

    Reasoning = (984 / 3 + 984) / (2 * 984) = 2/3, by rows it would be (149 + 984) / 1431 = 0.79;
    Chat Hard = (456 - 37) / 456 = 0.91886; overall = (1 + 0.91886 + 1 + 0.66667) / 4 = 0.89638.
    """
    figures = rewardbench.summarise(whole(math_prm=149, mt_bench_hard=0))
    values = {name: section["accuracy"]["value"] for name, section in figures["sections"].items()}
    expected = {"Chat": 1.0, "Chat Hard": 419 / 456, "Safety": 1.0, "Reasoning": 2 / 3}
    assert values == pytest.approx(expected)
    assert figures["overall"]["value"] == pytest.approx((2 + 419 / 456 + 2 / 3) / 4)
    assert figures["overall"]["low"] < figures["overall"]["value"] < figures["overall"]["high"]
    assert all(section["complete"] for section in figures["sections"].values())
    assert (figures["missing_subsets"], figures["incomplete_subsets"]) == ([], {})


def test_section_interval_is_that_of_its_parts() -> None:
    """Only math-prm varies, with weight 1/2: sd = sqrt(2/9 / 447) / 2 = 0.01115, so +- 0.0219 around 2/3."""
    found = rewardbench.summarise(whole(math_prm=149))["sections"]["Reasoning"]["accuracy"]
    assert found["low"] == pytest.approx(2 / 3 - 0.0219, abs=0.002)
    assert found["high"] == pytest.approx(2 / 3 + 0.0219, abs=0.002)


def test_missing_and_short_subsets_are_named() -> None:
    """Safety without donotanswer, and 10 of 100 refusals: (100 * .5 + 100 + 154 + 250) / 604 = 0.9172."""
    rows = [row for row in whole() if row.tags["subset"] not in ("donotanswer", "refusals-dangerous")]
    figures = rewardbench.summarise([*rows, *pairs("refusals-dangerous", 10, right=5)])
    safety = figures["sections"]["Safety"]
    assert figures["overall"] is None
    assert figures["missing_subsets"] == ["donotanswer"]
    assert figures["incomplete_subsets"] == {"refusals-dangerous": "10 of 100 rows"}
    assert (safety["complete"], safety["subsets"], safety["rows"]) == (False, "4 of 5", "514 of 740")
    assert safety["accuracy"]["value"] == pytest.approx(554 / 604)
    assert figures["sections"]["Chat"]["complete"]


def test_ties_count_half_and_missing_ones_not() -> None:
    """2 right, 1 tie, 1 wrong: 2.5 / 4; one more is missing: strict 2 / 5."""
    rows = [*pairs("donotanswer", 4, right=2, ties=1), judged([math.nan, 1.0], subset="donotanswer")]
    found = rewardbench.summarise(rows)["subsets"]["donotanswer"]
    assert (found["value"], found["strict"], found["n"]) == (0.625, 0.4, 4)
    assert (found["ties"], found["missing"]) == (1, 1)


def test_nothing_judged_is_none() -> None:
    figures = rewardbench.summarise([judged([math.nan, 1.0], subset="donotanswer")])
    assert figures["subsets"]["donotanswer"]["value"] is None
    json.dumps(figures, allow_nan=False)


def test_paper_pools_categories_and_loses_ties() -> None:
    """Chat pools both chat sections: 3 of 4 and 0 of 4 (a tie lost) -> 3/8; missing lost: code 1 of 2."""
    rows = [
        *pairs("alpacaeval-easy", 4, right=3),
        *pairs("llmbar-natural", 4, right=0, ties=4),
        *pairs("hep-go", 1, right=1),
        judged([math.nan, 0.0], subset="hep-go"),
    ]
    figures = rewardbench.summarise_paper(rows)
    assert figures["comparable_with_leaderboard"] is False
    assert figures["categories"]["chat"]["value"] == 0.375
    assert figures["categories"]["code"]["value"] == 0.5
    assert figures["categories"]["math"] is None
    assert (figures["overall"], figures["complete"], figures["rows"]) == (None, False, "10 of 5123")


def test_paper_overall_is_the_mean_of_four() -> None:
    """math 149 / 447 = 1/3, the others 1: (3 + 1/3) / 4."""
    figures = rewardbench.summarise_paper(whole(math_prm=149))
    assert figures["overall"]["value"] == pytest.approx(10 / 12)


def test_variants_stand_outside_the_sections() -> None:
    figures = rewardbench.summarise(pairs("donotanswer-mine", 4, right=1))
    assert figures["other_subsets"]["donotanswer-mine"]["value"] == 0.25
    assert figures["sections"]["Safety"]["accuracy"] is None


# RewardBench 2


def test_best_of_four() -> None:
    """Alone at the top 1; one of two at the top 1/2; below 0."""
    assert best_of_credit([3.0], [1.0, 2.0, 0.0]) == 1
    assert best_of_credit([2.0], [1.0, 2.0, 0.0]) == 0.5
    assert best_of_credit([1.0], [1.0, 2.0, 0.0]) == 0
    assert math.isnan(best_of_credit([1.0], [1.0, math.nan, 0.0]))


def ties(prompt: int, ref: Sequence[float], tied: Sequence[float], right: int) -> list[Example]:
    return [
        judged(ref, 1, subset="Ties", source_id=f"ref:{prompt}"),
        judged(tied, right, subset="Ties", source_id=f"tied:{prompt}"),
    ]


def test_ties_by_hand() -> None:
    """Prompt 1: ref gap 5 - 4 = 1; tied: right 9, 7, wrong 4: gap 3, spread 2.
    Both accurate; 3 > 2; min(1, 3) = 1 is not > 2; margin tanh(1/2 - 1) = tanh(-0.5).
    Prompt 2: ref gap 1 - 2 = -1; tied: right 4, 4, wrong 4: gap 0, spread 0.
    None accurate; 0 > 0 no; -1 > 0 no; margin -1 (the limit of tanh(-1 / spread)).
    Score = .3 / 2 + .3 / 2 + .2 / 2 + 0 + .01 (tanh(-.5) - 1) / 2.
    """
    rows = [*ties(1, [5.0, 4.0], [9.0, 7.0, 4.0], 2), *ties(2, [1.0, 2.0], [4.0, 4.0, 4.0], 2)]
    figures = rewardbench2.summarise(rows)
    assert figures["subsets"]["Ties"]["value"] == pytest.approx(0.4 + 0.005 * (math.tanh(-0.5) - 1))
    found = figures["terms_of_ties"]
    assert [found[name] for name in rewardbench2.TERMS][:4] == [0.5, 0.5, 0.5, 0.0]
    assert (found["prompts"], found["unpaired"], found["missing"]) == (2, 0, 0)


def test_ties_without_spread_or_partner() -> None:
    """Without spread the margin is the sign of the gap, 0 for no gap; half a pair has its accuracy only."""
    assert ties_terms({"ref": Margins(1.0, 0.0), "tied": Margins(2.0, 0.0)}) == [1, 1, 1, 1, 1]
    assert ties_terms({"ref": Margins(0.0, 0.0), "tied": Margins(2.0, 0.0)}) == [0, 1, 1, 0, 0]
    alone = ties_terms({"tied": Margins(2.0, 1.0)})
    assert alone[1] == 1
    assert [math.isnan(term) for term in alone] == [True, False, True, True, True]


def test_rewardbench2_overall_is_the_mean_of_six() -> None:
    """Five subsets at 1, 1/2, 0, 1, 1; Ties as prompt 1 above: .3 + .3 + .2 + 0 + .01 tanh(-.5)."""
    scores = {"Factuality": 3.0, "Precise IF": 2.0, "Math": 0.0, "Safety": 3.0, "Focus": 3.0}
    rows = [judged([score, 2.0, 1.0, 0.0], subset=name) for name, score in scores.items()]
    figures = rewardbench2.summarise(rows)
    assert (figures["overall"], figures["missing_subsets"]) == (None, ["Ties"])
    assert figures["subsets"]["Precise IF"]["strict"] == 0
    figures = rewardbench2.summarise([*rows, *ties(1, [5.0, 4.0], [9.0, 7.0, 4.0], 2)])
    expected = (3.5 + 0.8 + 0.01 * math.tanh(-0.5)) / 6
    assert figures["overall"]["value"] == pytest.approx(expected)
    assert (figures["complete"], figures["rows"]) == (False, "7 of 1865")


# RM-Bench

SIX = [1.0, 3.0, 5.0, 0.0, 3.0, 4.0]
"""Chosen 1, 3, 5 against rejected 0, 3, 4: credits 1 0 0 / 1 .5 0 / 1 1 1."""


def test_rm_bench_matrix() -> None:
    """Easy (below) = (1 + 1 + 1) / 3 = 1; normal = (1 + .5 + 1) / 3 = 5/6, strict 2/3; hard = 0.

    Accuracy = (1 + 5/6 + 0) / 3 = 11/18, strict (1 + 2/3) / 3 = 5/9; style bias = 1 - 0.
    """
    figures = rm_bench.summarise([judged(SIX, 3, domain="code")])
    code = figures["domains"]["Code"]
    assert code["matrix"] == {"concise": [1, 0, 0], "detailed": [1, 0.5, 0], "detailed markdown": [1, 1, 1]}
    values = [code[name]["value"] for name in ("easy", "normal", "hard", "accuracy", "style_bias")]
    assert values == pytest.approx([1, 5 / 6, 0, 11 / 18, 1])
    assert [code[name]["strict"] for name in ("normal", "accuracy")] == pytest.approx([2 / 3, 5 / 9])
    assert figures["overall"] is None
    assert figures["missing_domains"] == ["Chat", "Math", "Safety"]


def test_rm_bench_pools_safety_by_prompts() -> None:
    """Three refusals at 11/18 and one all right: (33/18 + 1) / 4; overall the mean of four domains."""
    right = [9.0, 9.0, 9.0, 0.0, 0.0, 0.0]
    rows = [judged(SIX, 3, domain="safety-refuse")] * 3 + [judged(right, 3, domain="safety-response")]
    rows += [judged(right, 3, domain=name) for name in ("chat", "code", "math")]
    figures = rm_bench.summarise(rows)
    safety = (33 / 18 + 1) / 4
    assert figures["domains"]["Safety"]["accuracy"]["value"] == pytest.approx(safety)
    assert figures["overall"]["accuracy"]["value"] == pytest.approx((3 + safety) / 4)
    assert figures["incomplete_domains"]["Safety"] == "4 of 441 prompts"


def test_a_missing_score_leaves_the_other_comparisons() -> None:
    """Without the first chosen score the first row of the matrix is unknown; the others stay."""
    figures = rm_bench.summarise([judged([math.nan, *SIX[1:]], 3, domain="code"), judged(SIX, 3, domain="code")])
    assert figures["domains"]["Code"]["matrix"]["concise"] == [1, 0, 0]
    assert figures["domains"]["Code"]["accuracy"]["strict"] == pytest.approx((5 / 9 + 4 / 9) / 2)


# Intervals


def test_interval_of_a_mean_of_means() -> None:
    """Two independent parts with sd 0.5 / sqrt(400) = 0.025 each: their mean has 0.025 / sqrt(2) = 0.0177."""
    half = np.tile([0.0, 1.0], 200)[:, None]
    found = weighted_mean([estimate(half, "one"), estimate(half, "other")]).figure()
    assert found["value"] == 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.0177, rel=0.1)


def test_bounds_of_one_prompt_are_unknown() -> None:
    assert estimate([[1.0]], "one").figure() == {"value": 1.0, "low": None, "high": None, "n": 1}


# Rows

PAIR = {"prompt": "p", "chosen": "yes", "rejected": "no", "subset": "donotanswer", "id": 7}
BEST = {"id": "1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math", "num_correct": 1}
REF = {"id": "ref:0", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Ties"}
TIED = {"id": "tied:0", "prompt": "q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
STYLED = {"prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "safety-refuse", "id": 3}


def written(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("rewardbench", PAIR | {"subset": "donotanswr"}, "unknown subset 'donotanswr'; the nearest is 'donotanswer'"),
        ("rewardbench", PAIR | {"subset": None}, "no text in the column subset"),
        ("rewardbench", PAIR | {"chosen": " "}, "a response in chosen is empty"),
        ("rewardbench", PAIR | {"rejected": None}, "no rejected; needed are prompt, chosen, rejected"),
        ("rewardbench", PAIR | {"rejected": ["a", "b"]}, "1 chosen and 1 rejected responses are needed, found 1 and 2"),
        ("rewardbench", PAIR | {"prompt": ""}, "the prompt is empty"),
        ("rewardbench-paper", PAIR | {"subset": "hep-c"}, "unknown subset 'hep-c'"),
        ("rewardbench2", BEST | {"subset": "Maths"}, "unknown subset 'Maths'"),
        ("rewardbench2", BEST | {"rejected": ["b"]}, "1 chosen and 3 rejected responses are needed, found 1 and 1"),
        ("rewardbench2", BEST | {"num_correct": 2}, "num_correct says 2, but the row has 1"),
        ("rewardbench2", REF | {"id": "0"}, "needs an id ref:NUMBER or tied:NUMBER, found '0'"),
        ("rewardbench2", TIED | {"chosen": ["a"]}, "tied:0: at least 2 chosen"),
        ("rewardbench2", REF | {"chosen": ["a", "b"]}, "ref:0: 1 chosen"),
        ("rm-bench", STYLED | {"chosen": ["a", "b"]}, "3 chosen and 3 rejected responses are needed, found 2 and 3"),
        ("rm-bench", STYLED | {"domain": "maths"}, "unknown domain 'maths' in the column domain; allowed: chat"),
        ("rm-bench", STYLED | {"domain": None}, "unknown domain 'rows' in the file's name"),
    ],
)
def test_wrong_rows_are_named(name: str, row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    good = {"rewardbench2": BEST, "rm-bench": STYLED}.get(name, PAIR)
    file = written(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(DataError) as error:
        list(BENCHMARKS[name].read(file))
    assert str(error.value).startswith(f"{file}, row 2: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prompt_of_ties_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3: the id 'ref:0' was there before"):
        list(rewardbench2.read(written(tmp_path / "rows.jsonl", [REF, TIED, REF])))


READ = {
    "rewardbench": [PAIR, PAIR | {"prompt": "q"}, PAIR | {"subset": "hep-go"}, PAIR | {"rejected": ""}],
    "rewardbench2": [BEST, BEST | {"prompt": "q"}, REF, TIED],
    "rm-bench": [STYLED, STYLED | {"domain": "math"}, STYLED | {"prompt": "q"}],
}


@pytest.mark.parametrize("name", READ)
def test_another_order_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = READ[name]
    found = list(BENCHMARKS[name].read(written(tmp_path / "rows.jsonl", rows)))
    turned = list(BENCHMARKS[name].read(written(tmp_path / "turned.jsonl", rows[::-1])))
    assert found == turned[::-1]
    assert len({example.id for example in found}) == len(rows)
    assert all(example.category is None for example in found)


def test_identical_rows_are_all_kept(tmp_path: Path) -> None:
    first, other, again = rewardbench.read(written(tmp_path / "rows.jsonl", [PAIR, PAIR, PAIR]))
    assert (other.id, again.id) == (f"{first.id}-2", f"{first.id}-3")


def test_tags_say_where_a_row_belongs(tmp_path: Path) -> None:
    (pair,) = rewardbench.read(written(tmp_path / "a.jsonl", [PAIR | {"gold": [1], "chosen_model": "m"}]))
    assert pair.tags == {"subset": "donotanswer", "section": "Safety", "source_id": "7", "chosen_model": "m"}
    assert pair.gold == (0,)
    (styled,) = rm_bench.read(written(tmp_path / "b.jsonl", [STYLED]))
    assert styled.tags["styles"] == [*rm_bench.STYLES, *rm_bench.STYLES]
    assert (styled.tags["domain"], styled.gold) == ("safety-refuse", (0, 1, 2))


def test_prompts_may_be_conversations(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    (found,) = rewardbench.read(written(tmp_path / "a.jsonl", [PAIR | {"prompt": turns}]))
    assert [message.role for message in found.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("summarise", "rows"),
    [
        (rewardbench.summarise, [row for name in rewardbench.ROWS for row in pairs(name, 9, right=4, ties=2)]),
        (rewardbench2.summarise, [row for k in range(9) for row in ties(k, [k, 4.0], [9.0, 7.0 - k, 4.0], 2)]),
        (rm_bench.summarise, [judged([k, 3.0, 5.0, 0.0, 3.0, 4.0], 3, domain="chat") for k in range(9)]),
    ],
)
def test_shuffled_rows_give_the_same_figures(summarise: Callable[..., Any], rows: list[Example]) -> None:
    shuffled = random.Random(0).sample(rows, len(rows))
    assert summarise(shuffled) == summarise(rows)
    scaled = [replace(row, scores=tuple(Score(-score.value) for score in row.scores)) for row in rows]
    assert summarise(scaled) != summarise(rows)


# Files


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.Table.from_pylist(rows), path)


def test_the_split_of_a_downloaded_dataset_is_in_the_file_name(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "filtered-00000-of-00001.parquet", [PAIR])
    parquet(tmp_path / "data" / "raw-00000-of-00002.parquet", [PAIR | {"prompt": "raw"}])
    parquet(tmp_path / "data" / "raw-00001-of-00002.parquet", [PAIR | {"prompt": "more"}])
    (tmp_path / "README.md").write_text("words")
    assert [example.messages[0].content for example in rewardbench.read(str(tmp_path))] == ["p"]
    assert [example.messages[0].content for example in rewardbench.read_raw(str(tmp_path))] == ["raw", "more"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["raw.jsonl"], "holds the split raw; this benchmark needs filtered"),
        (["data/raw-00000-of-00001.jsonl", "rows.jsonl"], "holds the split raw"),
        (["a/filtered.jsonl", "b/filtered.jsonl"], "the split filtered is there more than once"),
        (["filtered.jsonl", "filtered-00000-of-00001.jsonl"], "the split filtered is there more than once"),
        (["filtered-00001-of-00002.jsonl"], "1 files of the split filtered, 2 parts are needed"),
        (["notes.md"], "the folder holds no rows; readable are .jsonl"),
    ],
)
def test_an_unclear_split_is_refused(files: list[str], problem: str, tmp_path: Path) -> None:
    for name in files:
        written(tmp_path / name, [PAIR])
    with pytest.raises(DataError, match=problem):
        list(rewardbench.read(str(tmp_path)))


def test_a_file_of_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the split raw"):
        list(rewardbench.read(written(tmp_path / "raw.jsonl", [PAIR])))


def test_all_files_of_a_folder_are_read_but_descriptions(tmp_path: Path) -> None:
    written(tmp_path / "b.jsonl", [PAIR])
    written(tmp_path / "a" / "c.jsonl", [PAIR | {"prompt": "first"}])
    written(tmp_path / ".cache" / "old.jsonl", [PAIR])
    (tmp_path / "composition.json").write_text('{"source": "somewhere", "rows": {}}')
    assert [example.messages[0].content for example in rewardbench.read(str(tmp_path))] == ["first", "p"]


def test_the_total_of_rm_bench_stands_for_its_parts(tmp_path: Path) -> None:
    (tmp_path / "total_dataset.json").write_text(json.dumps([STYLED]))
    unnamed = {name: value for name, value in STYLED.items() if name != "domain"}
    (tmp_path / "safety-refuse_filtered.json").write_text(json.dumps([unnamed]))
    whole_set = list(rm_bench.read(str(tmp_path)))
    (tmp_path / "total_dataset.json").unlink()
    assert whole_set == list(rm_bench.read(str(tmp_path)))
    assert len(whole_set) == 1


def test_the_hub_out_of_reach_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    out = ["--judge", "random", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["bench", "--benchmark", "rewardbench2", *out]) == 2
    assert "allenai/reward-bench-2: cannot be had from the hub" in capsys.readouterr().err
    assert main(["bench", "--benchmark", "rm-bench", "--data", "rm_bench", *out]) == 2
    assert "rm_bench: no such file or folder" in capsys.readouterr().err


# The command


def test_bench_from_rows_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The built-in model on a folder: figures on disk, and one line for each in the table."""
    rows = [STYLED | {"prompt": f"What is {k} + 1?", "domain": name} for k in range(3) for name in rm_bench.PARTS]
    written(tmp_path / "data" / "rows.jsonl", rows)
    options = ["--benchmark", "rm-bench", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    done("bench", "--model", "lab", "--judge", "yes-no", *options)
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert figures["overall"]["accuracy"]["n"] == 15
    assert figures["domains"]["Safety"]["accuracy"]["n"] == 6
    table = capsys.readouterr().out
    assert "  Safety\n    accuracy" in table
    assert ", strict " in table

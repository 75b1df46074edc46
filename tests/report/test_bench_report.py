"""The report of bench runs, over small folders made by hand."""

import json

import pytest
from folders import unfinish, write_run
from test_report import Page, page_of

from selfjudge.cli import main
from selfjudge.config import BenchConfig
from selfjudge.errors import DataError
from selfjudge.report import bench_items, write_report
from selfjudge.report.bench_figures import figure_rows, in_words, remarks
from selfjudge.report.bench_items import item_table, verdict
from selfjudge.report.bench_runs import find_bench, read_bench
from selfjudge.report.blocks import Cell
from selfjudge.report.charts import Axes, ReliabilityBin, interval_strip, reliability_chart
from selfjudge.store import StepMeta, open_output, write_json_atomic

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def row(key, scores, **fields):
    """An item with one right response, the first, and as many wrong ones as there are further scores."""
    texts = [f"answer {place} to {key}" for place in range(len(scores))]
    found = {"id": key, "category": "math", "messages": [{"role": "user", "content": f"Question {key}?"}]}
    found |= {"responses": [{"text": text} for text in texts], "gold": [0], "tags": {"subset": "sums"}}
    return found | {"scores": [{"value": value, "label_mass": 0.99} for value in scores]} | fields


def share(value, n=8, **beside):
    return {"value": value, "low": value - 0.125, "high": value + 0.125, "n": n} | beside


def figures_of(accuracy, **more):
    counts = {"prompts": 2, "responses": 4, "missing": 1, "truncated": 1, "mean_label_mass": 0.9375}
    pairs = {"judge_accuracy": share(accuracy), "judge_strict": accuracy - 0.0625, "pairs": 8, "ties": 1}
    return counts | pairs | more


def write_bench(folder, accuracy=0.75, rows=None, data="a", finish=True, figures=None, **options):
    """A run as `selfjudge bench` leaves it; `data` stands for the digest of the rows."""
    values = {"model": "models/tiny", "benchmark": "mine", "out": str(folder)} | options
    config = BenchConfig(**values)
    meta = StepMeta("bench", config.model_dump(exclude={"benchmark"}), {"benchmark": {"name": "mine", "sha256": data}})
    with open_output(folder / "rows.jsonl", meta) as output:
        output.append(rows or [row("q1", [2.0, 1.0]), row("q2", [1.0, 3.0])])
        if finish:
            output.finish({"prompts": 2})
    if finish:
        judged_by = [config.model] if config.judge == "yes-no" else []
        results = {"config": config.model_dump(), "unit": "log-odds, nats", "judged_by": judged_by, "versions": {}}
        write_json_atomic(folder / "results.json", results | {"figures": figures or figures_of(accuracy)})
    return folder


def test_the_leaderboard_is_best_first(tmp_path):
    for name, accuracy in (("low", 0.5), ("high", 0.875), ("middle", 0.625)):
        write_bench(tmp_path / "deep" / name, accuracy)
    page = page_of(tmp_path)
    names = [cells[0] for section, cells in page.rows if section == "leaderboard"]
    assert names == ["Run", "mine: accuracy over all pairs", "deep/high", "deep/middle", "deep/low"]
    expected = ["87.5 75.0 - 100.0", "", "tiny", "yes-no", "8", "8", "1", "81.2", "1", "25.0", "93.75"]
    assert page.row("leaderboard", "deep/high") == expected


def test_other_rows_are_another_group(tmp_path):
    write_bench(tmp_path / "all", data="a")
    write_bench(tmp_path / "part", data="a", limit=2)
    write_bench(tmp_path / "other", data="b", benchmark="other")
    write_bench(tmp_path / "changed", data="c", limit=2)
    labels = {group.label: [run.name for run in group.runs] for group in read_bench(tmp_path).groups}
    assert labels == {
        "mine, all rows": ["all"],
        "mine, 2 rows (a)": ["part"],
        "mine, 2 rows (c)": ["changed"],
        "other": ["other"],
    }


def test_the_benchmarks_own_figure_ranks(tmp_path):
    """By overall: b (0.75) before a (0.5), though a has more pairs right."""
    write_bench(tmp_path / "a", figures=figures_of(0.875, overall=share(0.5)))
    write_bench(tmp_path / "b", figures=figures_of(0.625, overall=share(0.75)))
    page = page_of(tmp_path)
    assert [cells[0] for section, cells in page.rows if section == "leaderboard"][1:] == ["mine: overall", "b", "a"]


def test_a_missing_overall_is_said_and_not_replaced_in_silence(tmp_path):
    own = {"overall": None, "missing_subsets": ["donotanswer"], "subsets": {"math-prm": share(0.75, 4)}}
    page = page_of(write_bench(tmp_path / "run", figures=figures_of(0.75, **own)))
    assert "accuracy over all pairs (no overall figure: the rows are not complete)" in page.sections["leaderboard"]
    assert "Missing subsets: donotanswer" in page.sections["figures"]
    assert page.row("figures", "overall")[0] == "—"
    assert page.row("figures", "math-prm") == ["75.0 62.5 - 87.5", "4"]


def test_an_unfinished_run_is_named_and_has_no_figures(tmp_path):
    write_bench(tmp_path / "done")
    write_bench(tmp_path / "half", finish=False)
    unfinish(write_bench(tmp_path / "torn", 0.875) / "rows.jsonl")
    page = page_of(tmp_path)
    assert "Unfinished: half (2 rows are judged; the same command goes on" in page.sections["leaderboard"]
    assert "torn (1 row is judged" in page.sections["leaderboard"]
    assert page.row("leaderboard", "torn unfinished") == ["—", "", "tiny", "yes-no", *["—"] * 7]
    assert page.row("leaderboard", "done")[0] == "75.0 62.5 - 87.5"


def test_calibration_and_bias_that_are_not_there_are_said_to_be_missing(tmp_path):
    page = page_of(write_bench(tmp_path / "run"))
    assert "No calibration of run: these results hold none" in page.sections["calibration"]
    assert "No figures of bias of run" in page.sections["bias"]
    assert 'class="chart"' not in page.source


def bins(*counts):
    return [
        {"low": 0.5 + i / 4, "high": 0.75 + i / 4, "n": n, "predicted": 0.6 + i / 4, "right": 0.5} if n else
        {"low": 0.5 + i / 4, "high": 0.75 + i / 4, "n": 0, "predicted": None, "right": None}
        for i, n in enumerate(counts)
    ]  # fmt: skip


def test_calibration_and_bias_are_those_of_the_files(tmp_path):
    before = {"ece": 0.125, "brier": 0.25, "log_loss": 0.5, "bins": bins(3, 0)}
    calibration = {"temperature": 2.5, "fitted_pairs": 4, "checked_pairs": 3, "before": before}
    length = {"longer_preferred": share(0.625), "longer_right": share(0.5)}
    more = {"calibration": calibration | {"after": before | {"ece": 0.0625}}, "bias": {"length": length}}
    page = page_of(write_bench(tmp_path / "run", figures=figures_of(0.75, **more)))
    texts = ["2.50", "4", "3", "12.5", "6.2", "0.250", "0.250", "0.500", "0.500", ""]
    assert page.row("calibration", "run") == texts
    assert "As it is, ECE 12.5 %" in page.sections["calibration"]
    assert "With T = 2.50, ECE 6.2 %" in page.sections["calibration"]
    assert ("data-tip", "3 pairs from 50 to 75 %: predicted 60.0 %, right 50.0 %") in page.attributes
    assert page.row("bias", "run")[:3] == ["62.5 50.0 - 75.0", "50.0 37.5 - 62.5", "—"]
    assert "no two responses were shown in both orders" in page.sections["bias"]


def test_a_temperature_that_could_not_be_fitted_says_why(tmp_path):
    before = {"ece": 0.0, "brier": 0.0, "log_loss": 0.0, "bins": bins(0, 3)}
    calibration = {"temperature": None, "reason": "no pair is wrong", "fitted_pairs": 4, "checked_pairs": 3}
    more = {"calibration": calibration | {"before": before}}
    page = page_of(write_bench(tmp_path / "run", figures=figures_of(0.75, **more)))
    assert page.row("calibration", "run")[4] == "—"
    assert page.row("calibration", "run")[-1] == "no pair is wrong"


def test_a_matrix_is_shaded(tmp_path):
    matrix = {"concise": [0.5, 0.25], "detailed": [None, 1.0]}
    own = {"domains": {"Chat": {"accuracy": share(0.5), "matrix": matrix}}}
    page = page_of(write_bench(tmp_path / "run", figures=figures_of(0.75, **own)))
    assert page.row("figures", "concise") == ["50.0", "25.0"]
    assert page.row("figures", "detailed") == ["—", "100.0"]
    assert [value for name, value in page.attributes if name == "style" and "--shade" in value] == [
        "--shade: 50%",
        "--shade: 25%",
        "--shade: 100%",
    ]


def test_figures_without_a_name_here_are_shown_by_their_key():
    rows = figure_rows({"new_score": share(0.5, 3), "deep": {"er": {"tau": 2.0}}, "note": "odd", "none": []})
    assert [(one.part, one.label, one.text, one.n) for one in rows] == [
        ("Deep", "er: tau", Cell("2.00"), None),
        ("All rows", "New score", Cell("0.500", "0.375 \u2013 0.625"), 3),
    ]
    assert remarks({"new_score": 1.0, "note": "odd", "none": [], "complete": True}) == ["Note: odd"]
    assert in_words("style_bias") == "Style bias"


def test_a_strict_figure_stands_beside_another_one():
    [one] = figure_rows({"subsets": {"Chat": share(0.5, strict=0.25)}})
    assert one.text == Cell("50.0", "37.5 \u2013 62.5, strict 25.0")


# Single items


def test_runs_are_joined_by_item(tmp_path):
    """q1 is right in both runs; q2 is wrong in the first and has a tie in the second."""
    write_bench(tmp_path / "a", 0.875)
    write_bench(tmp_path / "b", rows=[row("q2", [1.0, 1.0]), row("q1", [9.0, 1.0])])
    table = item_table(read_bench(tmp_path))
    assert table["runs"] == [["a", "log-odds, nats"], ["b", "log-odds, nats"]]
    found = {item[0]: {place: one[:4] for place, one in item[6].items()} for item in table["items"]}
    assert found == {
        "q1": {"0": ["right", 1.0, 1, 1], "1": ["right", 8.0, 1, 1]},
        "q2": {"0": ["wrong", -2.0, 0, 1], "1": ["tie", 0.0, 0, 1]},
    }
    assert table["total"] == 2


def test_the_same_id_with_other_responses_is_another_item(tmp_path):
    write_bench(tmp_path / "a")
    write_bench(tmp_path / "b", rows=[row("q1", [1.0, 2.0, 3.0])], data="b")
    results = [(item[0], sorted(item[6])) for item in item_table(read_bench(tmp_path))["items"]]
    assert len(results) == 3
    assert all(len(places) == 1 for _, places in results)


def test_an_item_holds_what_was_said_of_it(tmp_path):
    cut = {"value": None, "label_mass": None, "reason": "too long"}
    given = {"value": 1.0, "label_mass": 0.5, "truncated": True, "evidence": {"against": {"1": [0.123456, None]}}}
    tags = {"domain": "chat", "styles": ["plain", "fancy"]}
    one = row("q1", [1.0, 2.0], tags=tags, reference="7") | {"scores": [given, cut]}
    [item] = item_table(read_bench(write_bench(tmp_path / "run", rows=[one])))["items"]
    assert item[1:5] == ["Question q1?", "math", "chat", "reference answer: 7; domain: chat"]
    assert item[5] == [["answer 0 to q1", 1, "plain"], ["answer 1 to q1", 0, "fancy"]]
    scores = [[1.0, 0.5, "middle cut to fit the context", {"against": {"1": [0.1235, None]}}]]
    assert item[6] == {"0": ["missing", None, 0, 1, [*scores, [None, None, "too long", None]]]}


@pytest.mark.parametrize(
    ("values", "gold", "expected"),
    [
        ([2.0, 1.5, 1.0], (0, 1), ("right", 0.5, 2, 2)),
        ([2.0, 0.5, 1.0], (0, 1), ("wrong", -0.5, 1, 2)),
        ([2.0, 1.0, 1.0], (0, 1), ("tie", 0.0, 1, 2)),
        ([2.0, None, 1.0], (0, 1), ("missing", None, 1, 2)),
        ([2.0, 1.0], None, ("unknown", None, 0, 0)),
    ],
)
def test_the_verdict_on_an_item(values, gold, expected):
    assert verdict(values, gold) == expected


def test_large_runs_show_the_same_items(tmp_path, monkeypatch):
    many = [row(f"q{number}", [2.0, 1.0]) for number in range(40)]
    write_bench(tmp_path / "a", rows=many)
    write_bench(tmp_path / "b", rows=many[::-1])
    table = item_table(read_bench(tmp_path), most=7)
    assert (len(table["items"]), table["total"]) == (7, 40)
    assert all(len(item[6]) == 2 for item in table["items"])
    assert len(item_table(read_bench(tmp_path), characters=1)["items"]) == 1
    monkeypatch.setattr(bench_items.item_table, "__defaults__", (7, bench_items.TEXT_SHOWN))
    assert "Shown are 7 of 40 items" in page_of(tmp_path).sections["items"]


def test_hostile_text_stays_text(tmp_path):
    bad = row("q1", [2.0, 1.0], messages=[{"role": "user", "content": HOSTILE}], tags={"subset": HOSTILE})
    figures = figures_of(0.75, **{HOSTILE: {HOSTILE: HOSTILE, "x": 1.0}})
    options = {"model": f"m{HOSTILE}", "benchmark": HOSTILE}
    page = page_of(write_bench(tmp_path / "run", rows=[bad], figures=figures, **options))
    assert "<img" not in page.source
    assert page.source.count("<script") == 2
    assert "alert(2)" in page.sections["leaderboard"]
    assert page.data()["items"][0][1] == HOSTILE
    assert not [name for name, _ in page.attributes if name.startswith("on")]


# What the folder holds


def test_both_kinds_in_one_folder_are_refused(tmp_path, capsys):
    write_run(tmp_path / "aligned", rounds=1)
    write_bench(tmp_path / "measured")
    assert main(["report", "--run", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds both an align run" in said
    assert said.count("\n") == 1
    assert "Leaderboard" in page_of(tmp_path / "measured").source


def test_other_steps_and_results_are_no_bench(tmp_path):
    write_run(tmp_path / "aligned", rounds=1)
    (tmp_path / "results.json").write_text('{"score": 1}')
    assert find_bench(tmp_path) == []
    with pytest.raises(DataError, match="no results of selfjudge bench"):
        write_report(tmp_path / "aligned" / "round-1", tmp_path / "report.html")


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}'])
def test_damaged_results(tmp_path, content):
    folder = write_bench(tmp_path / "run")
    (folder / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json: "):
        read_bench(folder)


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = page_of(write_bench(tmp_path / "run"))
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action")]
    assert "default-src 'none'" in page.source


def test_the_command_of_a_run_is_shown(tmp_path):
    folder = write_bench(tmp_path / "run", judge="yes-no", in_place=True)
    expected = f"selfjudge bench --model models/tiny --judge yes-no --benchmark mine --in-place --out {folder}"
    assert Page(write_report(folder, folder / "report.html")).row("ran", "run")[1] == expected


def test_bench_writes_what_the_report_reads(tmp_path, capsys):
    """The real command: the control judge on the built-in rows."""
    out = str(tmp_path / "run")
    assert main(["bench", "--judge", "oracle", "--benchmark", "lab-dev", "--limit", "20", "--out", out, "--quiet"]) == 0
    assert main(["report", "--run", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "report.html")}
    assert Page(tmp_path / "report.html").row("leaderboard", "run")[0].startswith("100.0")


# Drawings


def test_the_diagonal_and_the_counts():
    """290 wide for 0..1 from 52 on, 100 high: the prediction 0.5 stands at 197; 10 of 20 cases are half a bar."""
    axes = Axes("Reliability", ((0, "0"), (1, "1")), (0, 1), width=352, height=138, x_low=0.0, x_high=1.0)
    filled = [ReliabilityBin(0.0, 0.5, 10, 0.25, 0.5), ReliabilityBin(0.5, 1.0, 20, 0.5, 1.0)]
    chart = reliability_chart(axes, filled)
    assert 'class="mean" x1="52.0" x2="342.0" y1="110.0" y2="10.0"' in chart
    assert 'class="line s0" d="M124.5 60.0L197.0 10.0"' in chart
    assert ('width="144.0" height="16.0"' in chart, 'width="144.0" height="32.0"' in chart) == (True, True)
    assert (">10</text>" in chart, ">20</text>" in chart) == (True, True)


def test_an_interval_as_a_strip():
    """138 pixels for 0.5..1 from 6 on: 0.75 is in the middle."""
    strip = interval_strip((0.75, 0.625, 0.875), (0.5, 1.0), 0.5, 'tip "<b>')
    assert 'class="whisker s0" x1="40.5" x2="109.5"' in strip
    assert "translate(75.0 7.0)" in strip
    assert "&lt;b&gt;" in strip

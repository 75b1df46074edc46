import html
import json
import re
from html.parser import HTMLParser

import pytest
from folders import evaluation_rows, scored_row, unfinish, write_run, write_step

from selfjudge.cli import main
from selfjudge.config import ReportConfig
from selfjudge.console import Console
from selfjudge.errors import DataError, StepError
from selfjudge.report import prompts, write_report
from selfjudge.report.loading import read_run, unfinished
from selfjudge.report.observations import margin_change, observe, sampled_gain
from selfjudge.report.overview import command
from selfjudge.report.prompts import embedded, prompt_table
from selfjudge.steps import report

HYPHENS = str.maketrans("\u2013\u2212", "--")
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Text by section, table cells by row header, and a check that every element is closed.

    Dashes and minus signs of the page are read as hyphens.
    """

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.sections, self.rows, self.attributes = [], {"": ""}, [], []
        self.section = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""
        if tag == "tr":
            self.rows.append((self.section, []))
        if tag in ("td", "th") and self.rows:
            self.rows[-1][1].append("")

    def handle_startendtag(self, _, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        data = data.translate(HYPHENS)
        self.sections[self.section] += data
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][1][-1] += data

    def row(self, section, header, place=0):
        """The cells of the n-th row of the section that begins with this header."""
        found = [cells for name, cells in self.rows if name == section and cells[0] == header]
        return [cell.strip() for cell in found[place][1:]]

    def data(self):
        return json.loads(re.search(r'id="data">(.*?)</script>', self.source, re.DOTALL)[1])


def page_of(folder):
    return Page(write_report(folder, folder / "report.html"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(write_run(tmp_path_factory.mktemp("finished") / "run"))


def test_accuracy_is_that_of_the_files(page):
    assert page.row("accuracy", "start") == ["25.0 12.5 - 37.5", "18.8 12.5 - 37.5", "25.0 12.5 - 37.5", "4"]
    assert page.row("accuracy", "round 2") == ["75.0 62.5 - 87.5", "68.8 62.5 - 87.5", "75.0 62.5 - 87.5", "4"]
    assert "Sampled accuracy 25.0 % → 75.0 % after round 2; paired change +50.0 points" in page.sections["accuracy"]
    assert "Sampled accuracy is the headline" in page.sections["accuracy"]


def test_accuracy_by_category(page):
    assert "chat (2 questions)" in page.sections["accuracy"]
    assert len(page.row("accuracy", "round 1", place=1)) == 4


def test_judge_figures_are_those_of_the_files(page):
    assert page.row("judge", "round 1") == ["87.5 80.0 - 90.0", "83.8 80.0 - 90.0", "85.0", "8", "1"]
    assert page.row("judge", "round 1", place=1) == ["93.75", "25.0", "8.3", "12"]
    assert "Against: typo" in page.sections["judge"]


def test_agreement_of_scores_in_place_is_shown_where_it_is_known(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "In place" not in page_of(folder).sections["judge"]
    meta = folder / "round-2" / "samples.meta.json"
    written = json.loads(meta.read_text())
    written["summary"]["agreement"] = {
        "kendall_tau": {"value": 0.25, "low": 0.1, "high": 0.4, "n": 64},
        "same_best": {"value": 0.5, "low": 0.375, "high": 0.625, "n": 64},
    }
    meta.write_text(json.dumps(written))
    found = page_of(folder)
    assert "In place" in found.sections["judge"]
    row = next(cells for section, cells in found.rows if section == "judge" and "0.250 0.100 - 0.400" in cells)
    assert row == ["round 2", "0.250 0.100 - 0.400", "50.0 37.5 - 62.5", "\u2014", "\u2014"]


def test_pairs_and_margins_come_from_the_rows(page):
    count, margin, right, _, dropped = page.row("scores", "round 2")
    assert (count, margin.split()[0], right.split()[0]) == ("3", "6.00", "66.7")
    assert dropped == "fewer than 2 finished responses: 1"


def test_a_fallen_margin_is_an_alarm(page):
    """8 -> 6 nats is a fall of 25 %."""
    assert (
        "Alarm: the mean margin fell by more than 10 % from round 1, 8.00 → 6.00 in round 2 (-25.0 %)"
        in (page.sections["scores"])
    )


def test_drift_and_training_figures(page):
    assert page.row("drift", "round 1") == ["2.50", "2.25", "3.25", "2.00", "8.3", "75.0", "99.00", "81.2"]
    assert page.row("drift", "start") == ["—", "—", "—", "2.00", "—", "—", "99.00", "81.2"]
    own = ["0.375", "0.500", "1.50", "25.0"]
    assert page.row("training", "round 1") == [
        "3",
        "0.690",
        "0.670",
        "0.250",
        "0.125",
        "-0.125",
        *own,
        "0.688",
        "75.0",
        *["—"] * 2,
    ]


def test_training_charts_are_those_of_what_was_logged(page):
    """The log has no correlation at its first step, and none of the log-probabilities."""
    charts = page.sections["training"]
    for title in ("Loss", "Forward KL, nats", "Correlation of D with z", "Gradient norm", "Clipped targets"):
        assert title in charts
    assert "Log-probability, nats" not in charts
    assert "step 2: 0.500" in page.source


def test_options_and_versions(page):
    text = page.sections["ran"]
    for expected in ("mine.jsonl", "dpo, beta 0.1", "LoRA of rank 16", "selfjudge 0.1.0", "2 of 2 finished"):
        assert expected in text
    assert "Unfinished" not in text


def test_nothing_is_loaded_from_elsewhere(page):
    """No address, no file, and a policy that forbids both."""
    assert not re.search(r"https?://|@import|//cdn", page.source)
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "default-src 'none'" in page.source


def test_rows_of_the_table(page):
    rows = page.data()["rows"]
    assert len(rows) == 8
    first = next(row for row in rows if row[2] == "q1" and row[1] == 1)
    assert first[:2] + first[3:7] == [0, 1, "math", "Question q1?", "good q1", "pair"]
    assert first[7] == [
        ["good q1", 4.0, 0.9, 1, 1, 2, 1, ""],
        ["bad q1", -4.0, 0.9, 1, 0, 1, -1, ""],
        ["cut q1", None, None, 0, 0, 1, 0, "prompt too long"],
    ]
    assert next(row for row in rows if row[2] == "q4")[6] == "none"


def test_charts_have_names(page):
    svgs = re.findall(r'<svg class="chart"[^>]*>', page.source)
    assert len(svgs) > 15
    assert all('role="img" aria-label="' in svg for svg in svgs)


def test_controls_of_the_filter_have_labels(page):
    inputs = re.findall(r"<(?:input|select) ", page.source)
    assert len(inputs) == len(re.findall(r"<label[^>]*>[^<]+<(?:input|select) ", page.source)) > 0


HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \u2028 ]]> <!--"


def test_untrusted_text_stays_text(tmp_path):
    page = page_of(write_run(tmp_path / "<b>run</b>", texts={"q1": HOSTILE}))
    assert page.source.count("<script") == page.source.count("</script>") == 2
    assert "<img" not in page.source
    assert "<b>" not in page.source
    assert "<b>run</b>" in page.sections["ran"]
    row = next(row for row in page.data()["rows"] if row[2] == "q1")
    assert row[5] == row[7][0][0] == HOSTILE


def test_embedded_json_has_no_markup_and_loses_nothing():
    text = embedded({"rows": [HOSTILE]})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"rows": [HOSTILE]}


def test_hostile_options_are_escaped(tmp_path):
    page = page_of(write_run(tmp_path / "run", questions="<script>alert(2)</script>"))
    assert page.source.count("<script") == 2
    assert html.escape("<script>alert(2)") in page.source


def test_without_references_no_accuracy_is_shown(tmp_path):
    page = page_of(write_run(tmp_path / "run", truth=False))
    text = page.sections["accuracy"]
    assert "No accuracy: none of the evaluated rows has a reference answer" in text
    assert "no proof of improvement" in text
    assert page.row("accuracy", "round 1") == ["3.50", "81.2", "4"]
    assert "No judge accuracy: the evaluated rows come without labelled" in page.sections["judge"]
    assert page.row("scores", "round 1")[2] == "—"
    assert "No prompt has a reference answer" in " ".join(page.sections["prompts"].split())
    assert 'value="right"' not in page.source


def test_arms_are_shown_side_by_side(tmp_path):
    for judge in ("random", "oracle", "yes-no"):
        write_run(tmp_path / judge, judge=judge)
    page = page_of(tmp_path)
    assert [arm.name for arm in read_run(tmp_path).arms] == ["yes-no", "oracle", "random"]
    assert "the same but for --judge oracle / random" in page.sections["ran"]
    assert page.data()["arms"] == ["yes-no", "oracle", "random"]
    assert len(page.data()["rows"]) == 24
    assert "random: sampled accuracy 25.0 %" in page.sections["accuracy"]
    assert page.sections["scores"].count("Alarm (") == 1


def test_an_unfinished_round_is_flagged_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in ("evaluation.jsonl", "evaluation.meta.json"):
        (folder / "round-2" / name).unlink()
    unfinish(folder / "round-2" / "training.jsonl")
    page = page_of(folder)
    assert unfinished(read_run(folder).arms[0]) == ["round 2 stopped at its training (3 rows are there)"]
    assert "Unfinished: round 2 stopped at its training" in page.sections["ran"]
    assert page.row("accuracy", "round 2") == ["—"] * 4
    assert page.row("training", "round 2") == ["—"] * 14
    assert "after round 1" in page.sections["accuracy"]
    assert "step 3: 0.670" in page.source


def test_unfinished_judging_shows_the_samples_without_scores(tmp_path):
    folder = write_run(tmp_path / "run", rounds=1)
    for name in ("selected", "training", "evaluation"):
        for suffix in (".jsonl", ".meta.json"):
            (folder / "round-1" / f"{name}{suffix}").unlink()
    unfinish(folder / "round-1" / "scored.jsonl")
    page = page_of(folder)
    assert "No scores yet" in page.sections["scores"]
    assert "No training log yet" in page.sections["training"]
    assert page.row("accuracy", "start")[0].startswith("25.0")
    assert {row[6] for row in page.data()["rows"]} == {"unknown"}
    assert all(one[1] is None for row in page.data()["rows"] for one in row[7])


def test_a_run_that_has_only_begun(tmp_path):
    folder = write_run(tmp_path / "run", rounds=1)
    run = (folder / "run.json").read_text()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text(run)
    page = page_of(tmp_path / "begun")
    for section in ("accuracy", "judge", "scores", "drift", "training", "prompts"):
        assert " yet" in page.sections[section]
    assert "round 1 has not begun" in page.sections["ran"]


def test_one_category_and_partial_references(tmp_path):
    folder = write_run(tmp_path / "run", rounds=1)
    path = folder / "start" / "evaluation.jsonl"
    rows = [row | {"reference": None} for row in evaluation_rows(1, True)][:2]
    path.unlink()
    path.with_suffix(".meta.json").unlink()
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 1}
    write_step(path, rows, {"questions": 2, "sampled": share, "greedy": share, "any_right": share})
    unfinish(folder / "round-1" / "evaluation.jsonl")
    page = page_of(folder)
    assert "all questions are of one category" in page.sections["accuracy"]
    assert page.row("accuracy", "start")[-1] == "1 of 2 have a reference"


def test_the_share_of_prompts_is_bounded_and_said(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(prompts.prompt_table, "__defaults__", (3, prompts.TEXT_SHOWN))
    page = page_of(folder)
    ids = {number: {row[2] for row in page.data()["rows"] if row[1] == number} for number in (1, 2)}
    assert len(ids[1]) == 3
    assert ids[1] == ids[2]
    assert "Shown are 6 of 8 lines" in page.sections["prompts"]


def test_the_table_is_bounded_by_its_text(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert len(prompt_table(run, characters=1)["rows"]) == 2
    assert len(prompt_table(run, characters=10**6)["rows"]) == 8


def test_turns_are_told_apart(tmp_path):
    row = scored_row(0, "q1", 1, True, {})
    row["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    folder = write_run(tmp_path / "run", rounds=1)
    path = folder / "round-1" / "scored.jsonl"
    path.unlink()
    path.with_suffix(".meta.json").unlink()
    write_step(path, [row], {})
    assert prompt_table(read_run(folder))["rows"][0][4] == "[system] Be brief.\n\n[user] Hi"


def test_observed_scores_by_truth(tmp_path):
    """Scored are two good answers and a bad one to each question; the best of q3 is wrong, q4 has no bad one."""
    seen = observe(read_run(write_run(tmp_path / "run")).arms[0].rounds[1])
    assert sorted(seen.right) == [-4.0] + [4.0] * 6
    assert sorted(seen.wrong) == [-4.0, -4.0, 4.0, 4.0]
    assert (list(seen.margins), list(seen.best_right), list(seen.unknown)) == ([8.0] * 3, [1.0, 1.0, 0.0], [])


def test_a_control_judge_raises_no_alarm(tmp_path):
    for judge, alarm in (("yes-no", True), ("random", False)):
        arm = read_run(write_run(tmp_path / judge, judge=judge)).arms[0]
        change = margin_change(arm, {item.number: observe(item) for item in arm.rounds[1:]})
        assert (change is not None) is alarm


def test_the_gain_is_paired(tmp_path):
    """Questions q2 and q3 become right, q1 stays right, q4 stays wrong: 2 of 4."""
    gain = sampled_gain(read_run(write_run(tmp_path / "run")).arms[0])
    assert gain.estimate == 0.5
    assert gain.low < 0.5 < gain.high


def test_the_command_gives_the_options_back(tmp_path):
    arm = read_run(write_run(tmp_path / "run", rounds=1, in_place=True, loss="irepo")).arms[0]
    parts = command(arm)
    assert parts[:3] == ["selfjudge align", "--model lab", "--prompts mine.jsonl"]
    assert sorted(parts[3:]) == ["--in-place", "--loss irepo", f"--out {tmp_path / 'run'}", "--rounds 1"]


def test_the_step_writes_beside_the_run_or_where_told(tmp_path):
    folder = write_run(tmp_path / "run")
    assert report.run(ReportConfig(run=str(folder)), Console(quiet=True)) == {"report": str(folder / "report.html")}
    out = tmp_path / "new" / "page.html"
    report.run(ReportConfig(run=str(folder), out=str(out)), Console(quiet=True))
    assert out.read_bytes() == (folder / "report.html").read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_page_that_cannot_be_written(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    with pytest.raises(StepError, match="give another --out"):
        write_report(folder, folder / "report.html")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_is_no_run(tmp_path, capsys):
    with pytest.raises(DataError, match=r"not a run \(no run\.json") as error:
        write_report(tmp_path, tmp_path / "report.html")
    assert "\n" not in str(error.value)
    assert main(["report", "--run", str(tmp_path)]) == 2
    assert "selfjudge align" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": 3}'])
def test_a_damaged_run_file(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json: "):
        read_run(tmp_path)


def test_a_damaged_row(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "round-1" / "scored.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"id":"q2"', b'["id":"q2"'))
    with pytest.raises(DataError, match=r"scored\.jsonl, row 2"):
        page_of(folder)

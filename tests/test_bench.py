"""The benchmark's ways agree with each other and its tables say what was measured; nothing here depends on speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import command, machine, models, operations, sampling, scoring, shares, suites, table, training, ways
from bench.comparison import Bar, BenchError, Case, Measured, check_agreement
from bench.models import NEVER_ENDS, SHAPES
from bench.operations import Lengths
from bench.ways import Place, Turn

SCORING = scoring.Scoring("tiny", prompts=2, prompt_tokens=9, response_tokens=8, num_responses=3)
SAMPLING = sampling.Sampling("tiny", prompts=3, prompt_tokens=8, new_tokens=12, num_responses=2)
TRAINING = training.Training("tiny", prompts_per_step=2, prompt_tokens=6, response_tokens=8)
GROUPS = replace(TRAINING, num_responses=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model whose responses have 6 tokens on average."""
    place = Place(str(tmp_path_factory.mktemp("bench")))
    models.save(SHAPES["tiny"], place, mean_response=6)
    return place


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    ways.to_close.close()


# Models


def test_shapes_count_their_weights() -> None:
    place = Place("")
    shape = SHAPES["tiny"]
    model = models.build(shape, place, NEVER_ENDS)
    norms = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters + norms
    assert round(SHAPES["18M"].parameters / 1e6) == 18
    assert round(SHAPES["125M"].linear_parameters / 1e6) == 106


def test_a_word_is_a_token(place: Place) -> None:
    tokenizer = models.load(place)[1]
    ids = tokenizer.encode("w9 Yes w511 nonsense")
    assert ids == [9, 3, 511, tokenizer.unk_token_id]
    assert tokenizer.decode([9, 3]) == "w9 Yes"


# What the work needs


def test_operations_of_a_tree() -> None:
    """Prompt of 2 with responses of 1 and 2: 5 tokens; pairs 1 + 2, then 3, then 3 + 4; head 2 x 2 x 64 x 512."""
    trees = [Lengths(2, (1, 2))]
    assert operations.tokens(trees) == 5
    assert operations.attended_pairs(trees) == 13
    linear = 2 * (2 * 64 * 32 * 3 + 3 * 64 * 128)
    attention = 4 * 2 * 2 * 32 * 13
    assert operations.forward(SHAPES["tiny"], trees, head_positions=2) == 2 * linear * 5 + attention + 131072
    assert operations.lora_step(SHAPES["tiny"], trees) == 4 * linear * 5 + 3 * attention + 3 * 131072


# Ways


@pytest.mark.parametrize("name", [scoring.ONE_BY_ONE, scoring.PADDED, scoring.OURS])
def test_scoring_ways_agree(name: str, place: Place) -> None:
    expected = scoring.WAYS[scoring.REFERENCE](place, SCORING)(1)
    found = scoring.WAYS[name](place, SCORING)(1)
    assert found.results == pytest.approx(expected.results, abs=1e-4)
    assert (found.units, found.flops) == (6, expected.flops)
    assert statistics.pstdev(expected.results) > 1e-3


def test_padded_batches_keep_to_their_tokens() -> None:
    assert scoring.padded_batches([1000, 2000, 900, 5000]) == [[3], [1, 0], [2]]


@pytest.mark.parametrize("name", [sampling.ONE_BY_ONE, sampling.BATCHED, sampling.CONTINUOUS, sampling.OURS])
def test_sampling_ways_draw_up_to_the_end_or_the_limit(name: str, place: Place) -> None:
    work = replace(SAMPLING, alone=6)
    turn = sampling.WAYS[name](place, work)(0)
    assert len(turn.lengths) == 6
    assert all(1 <= length <= 12 for length in turn.lengths)
    assert turn.units == sum(turn.lengths)


def test_responses_end_as_often_as_asked_for(place: Place, tmp_path: Path) -> None:
    """Lengths capped at 12 with an end of probability 1/6 have mean 6 (1 - (5/6)^12) = 5.33; 200 of them are enough."""
    work = replace(SAMPLING, prompts=20, num_responses=10)
    drawn = sampling.WAYS[sampling.BATCHED](place, work)(0)
    assert statistics.fmean(drawn.lengths) == pytest.approx(5.33, abs=1.2)
    endless = Place(str(tmp_path))
    models.save(SHAPES["tiny"], endless, NEVER_ENDS)
    assert set(sampling.WAYS[sampling.OURS](endless, SAMPLING)(0).lengths) == {12}


@pytest.mark.parametrize("work", [TRAINING, GROUPS], ids=["pairs", "groups"])
@pytest.mark.filterwarnings("default")  # TRL's own
def test_training_ways_agree(work: training.Training, place: Place) -> None:
    expected = training.WAYS[training.TRL_TUNED](place, work)(0)
    run = training.WAYS[training.OURS](place, work)
    found = run(0)
    assert found.results == pytest.approx(expected.results, abs=1e-4)
    assert run(1).results == found.results
    assert (found.units, len(found.results)) == (4 * work.pairs_per_prompt, 2)
    assert abs(found.results[0] - 0.6931) > 1e-3


def test_disagreement_is_an_error() -> None:
    turns = {"a": Turn(1, 1, results=(1.0, 2.0)), "b": Turn(1, 1, results=(1.0, 2.01))}
    with pytest.raises(BenchError, match=r"work: b and a differ by 0\.01, more than 0\.0001"):
        check_agreement("work", turns, 1e-4)
    check_agreement("work", turns, 0.02)


def test_lengths_agree_as_far_as_chance_goes() -> None:
    """Means 2 and 4 with standard error 0: no chance. 1 to 3 and 2 to 4 with 0.58 each: 1 of the 4.1 allowed."""
    with pytest.raises(BenchError, match="differ by 2 tokens"):
        check_agreement("work", {"a": Turn(1, 1, lengths=(2, 2)), "b": Turn(1, 1, lengths=(4, 4))}, 1e-4)
    check_agreement("work", {"a": Turn(1, 1, lengths=(1, 2, 3)), "b": Turn(1, 1, lengths=(2, 3, 4))}, 1e-4)


# Tables


def test_figures_of_a_way() -> None:
    way = Measured(
        loaded_bytes=10, turns=[Turn(2, 8, flops=6), Turn(1, 8, flops=6), Turn(4, 8, flops=6)], peak_bytes=14
    )
    assert (way.seconds, way.rate, way.flops_per_second, way.growth_bytes) == (2, 4, 3, 4)
    other = Measured(loaded_bytes=10, turns=[Turn(2, 8, peak_bytes=30)], peak_bytes=30)
    assert other.growth_bytes == 30
    peer = Measured(loaded_bytes=10, turns=[Turn(4, 8, flops=6)], peak_bytes=22)
    assert table.quotient(Bar("ours", "peer", 1), way, peer) == 2
    assert table.quotient(Bar("ours", "peer", 1, "memory"), way, peer) == 3
    assert table.quotient(Bar("ours", "peer", 1, "operations"), way, peer) == 1.5


def test_operations_have_a_kind() -> None:
    assert shares.kind_of("aten::addmm") == "matrix products"
    assert shares.kind_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
    assert shares.kind_of("aten::mul") == "norms, rotary embedding, activation"
    assert shares.kind_of("aten::empty") == shares.OTHER


def test_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(SystemExit, match="bench: begin"):
        table.put_into(page, "new")
    assert page.read_text() == "text\n"


def test_growth_puts_the_sizes_of_one_work_side_by_side() -> None:
    cases = [suites.training_case(replace(TRAINING, prompts_per_step=size), 1.0, ways=("a", "b")) for size in (1, 2, 4)]
    rates = [{"a": Measured(turns=[Turn(1, size)]), "b": Measured(unavailable="no")} for size in (3, 5, 7)]
    text = table.growth_part([table.Compared(*both) for both in zip(cases, rates, strict=True)])
    assert "| pairs/s | 1 prompts | 2 prompts | 4 prompts |" in text
    assert "| a | 3 | 5 | 7 |" in text
    assert "| b |" not in text


# The command


def test_a_run_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_apart", lambda function, *arguments: function(*arguments))  # two processes less
    ways_of = (scoring.OURS, machine.LIMIT)
    bar = Bar(scoring.OURS, machine.LIMIT, 0.0, "operations")
    case = Case("Tiny", "tiny", SCORING, ways_of, scoring.OURS, "scores", 6, (bar,))
    broken = replace(case, title="Broken", ways=("no such way",), bars=())
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{table.BEGIN}\nstale\n{table.STOP}\nafter\n")
    suite = suites.Suite(1, "tiny", {"scoring": [case, broken], "sampling": [], "training": [], "rounds": []})
    assert command.run(suite, ("scoring",), Place(str(tmp_path)), page) == 1
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "| selfjudge, hf | " in text
    assert "holds" in text
    assert "| matrix products | " in text
    assert "### Broken\n\nNot measured: no such way died with exit code 1" in text


def test_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--only", "scoring,speed"])
    assert stopped.value.code == 2
    assert "unknown speed; there are scoring, sampling, training, rounds" in capsys.readouterr().err


def test_suites_name_ways_that_exist() -> None:
    for suite in (suites.small(), suites.full(), suites.gpu()):
        for case in suites.chosen(suite, suites.KINDS):
            known = {scoring.Scoring: scoring, sampling.Sampling: sampling, training.Training: training}
            module = known.get(type(case.work), suites.rounds)
            named = {*case.ways, case.peer, *(name for bar in case.bars for name in (bar.ours, bar.peer))}
            assert named <= set(case.ways) <= set(module.WAYS)
            assert machine.LIMIT in case.ways
            assert case.work.shape == case.shape
            assert case.shape in SHAPES

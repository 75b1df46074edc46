"""Real files and real tokenizers on small random models: every format comes in, every tokenizer finds its labels."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
from commands import done, summary
from models import CHATML, config_of, make_model, save_weights
from transformers import AutoTokenizer

from selfjudge.backends import BackendOptions
from selfjudge.backends.hf import HFBackend
from selfjudge.cli import main
from selfjudge.questions import load_questions
from selfjudge.readers import read_examples
from selfjudge.records import Message
from selfjudge.store import read_rows

FAKE = ["--backend", "fake", "--model", "fake", "--quiet"]
FILES = {
    "alpaca_en_demo_999.json": 999,
    "kto_en_demo.json": 300,
    "oasst_commitpackft_manual_1178.jsonl.gz": 1178,
    "self_instruct_seed_tasks_175.jsonl": 175,
    "self_instruct_user_oriented_252.jsonl": 252,
    "biggen_bench_765.json.gz": 765,
}
ARCHITECTURES = ("llama", "qwen2", "gpt2", "phi")
FORMATS = (".jsonl", ".csv", ".parquet", ".txt")


@pytest.mark.parametrize("name", FILES)
def test_instruction_files_are_sampled_from_whole(name: str, shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    done("sample", *FAKE, "--prompts", shared_data / "instructions" / name, "--out", out)
    rows = list(read_rows(out))
    assert len({row["id"] for row in rows}) == len(rows) == FILES[name]
    assert all(row["messages"][-1]["content"].strip() for row in rows)


def test_a_file_that_repeats_its_ids_is_refused(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three model pairs per prompt under one id; which answers belong together only the user knows."""
    file = shared_data / "instructions" / "open_instruct_human_eval_332.jsonl.gz"
    assert main(["judge", *FAKE, "--input", str(file)]) == 2
    assert "is that of row" in capsys.readouterr().err


def test_a_padding_token_beyond_the_embeddings_is_not_used(tmp_path: Path) -> None:
    """Tokenizers often gain a padding token after training, without a row in the model's table."""
    model = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(str(model))
    (tmp_path / "p.txt").write_text("one\nis this the one\n")
    done("sample", "--quiet", "--model", model, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "s.jsonl")
    assert summary(tmp_path / "s.jsonl")["prompts"] == 2


def prompts_in(suffix: str, shared_data: Path, folder: Path) -> Path:
    """48 short real instructions, in a file of that format."""
    rows = read_examples(shared_data / "instructions" / "self_instruct_user_oriented_252.jsonl")
    texts = list(islice((e.messages[0].content for e in rows if len(e.messages[0].content) < 250), 48))
    file = folder / f"prompts{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    elif suffix == ".csv":
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([["instruction"], *([text] for text in texts)])
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"question": texts}), file)
    else:
        file.write_text("".join(" ".join(text.split()) + "\n" for text in texts))
    return file


@pytest.mark.parametrize(("architecture", "suffix"), [*zip(ARCHITECTURES, FORMATS, strict=True)])
def test_a_round_on_real_prompts(architecture: str, suffix: str, shared_data: Path, tmp_path: Path) -> None:
    """Each architecture with another format, two with a chat template and two without."""
    template = CHATML if architecture in ("llama", "gpt2") else None
    model = make_model(tmp_path / "model", architecture, template, positions=1024)
    prompts, run = prompts_in(suffix, shared_data, tmp_path), tmp_path / "run"
    options = ["--rounds", 1, "--prompts-per-round", 16, "--max-new-tokens", 8, "--keep-unfinished", "--batch-size", 8]
    done("align", "--quiet", "--model", model, "--prompts", prompts, "--out", run, "--holdout", 0.2, *options)
    assert summary(run / "round-1" / "samples.jsonl")["prompts"] == 16
    trained = summary(run / "round-1" / "training.jsonl")
    assert trained["reference"] == "sample"  # what was sampled and what is trained on agree to 0.01 nats
    assert trained["prompts"] + trained["validation_prompts"] >= 14
    assert summary(run / "round-1" / "evaluation.jsonl")["questions"] > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rm_bench_rows_are_judged(architecture: str, shared_data: Path, tmp_path: Path) -> None:
    """Three right and three wrong answers a row; long ones are cut in their middle and counted."""
    model = make_model(tmp_path / "model", architecture, CHATML, positions=1024)
    out = tmp_path / "scored.jsonl"
    source = shared_data / "rm_bench" / "chat_filtered.json"
    done("judge", "--quiet", "--model", model, "--input", source, "--limit", 5, "--out", out)
    rows, found = list(read_rows(out)), summary(out)
    assert [len(row["scores"]) for row in rows] == [6] * 5
    assert found["truncated"] == sum(score.get("truncated", False) for row in rows for score in row["scores"]) > 0
    assert (found["pairs"], found["judge_accuracy"]["n"]) == (45, 45)
    assert 0 < found["mean_label_mass"] < 1
    assert all(row["gold"] == [0, 1, 2] for row in rows)


# Real tokenizers

YES = {"llama2": 3869, "phi-3-mini": 8241, "gpt2": 3363, "phi-2": 3363, "falcon": 5007, "cl100k_base": 7566}
"""The id that continues `Assistant:` as ` Yes`, for phi-3-mini the one behind the newline of the assistant's header."""


def model_with(name: str, shared_tokenizers: Path, folder: Path) -> Path:
    shutil.copytree(shared_tokenizers / name, folder)
    if name in ("falcon", "cl100k_base"):  # stored without their end tokens
        end = {"falcon": "<|endoftext|>", "cl100k_base": "<|endoftext|>"}[name]
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text()) if file.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
        file.write_text(json.dumps(settings | {"eos_token": end}))
    size = len(AutoTokenizer.from_pretrained(str(folder)))
    save_weights(folder, config_of("llama", size, positions=1024))
    return folder


def test_a_tokenizer_without_an_end_token_is_refused(
    shared_tokenizers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(shared_tokenizers / "cl100k_base", tmp_path / "model"))
    save_weights(folder, config_of("llama", 100256))
    (tmp_path / "p.txt").write_text("Hello\n")
    assert main(["sample", "--quiet", "--model", str(folder), "--prompts", str(tmp_path / "p.txt")]) == 2
    assert "its tokenizer has no end token" in capfd.readouterr().err


@pytest.mark.parametrize("name", YES)
def test_a_real_tokenizer_samples_and_judges(name: str, shared_tokenizers: Path, tmp_path: Path) -> None:
    folder = model_with(name, shared_tokenizers, tmp_path / "model")
    backend = HFBackend(str(folder), BackendOptions())
    questions = load_questions()
    prompt = backend.renderer.text(questions.separate((Message("user", "1 + 1?"),), "2", "math"))
    yes, no = backend.prompts._resolve(prompt, (questions.yes, questions.no))
    assert YES[name] in yes
    assert not set(yes) & set(no)
    for token in (*yes, *no):  # no piece of a word and no bare blank counts
        assert backend.renderer.tokenizer.decode([token]).strip().lower() in ("yes", "no")
    backend.close()
    (tmp_path / "p.txt").write_text("Name three colours.\nWhat is 12 * 12?\n")
    samples, scored = tmp_path / "samples.jsonl", tmp_path / "scored.jsonl"
    done(
        "sample", "--quiet", "--model", folder, "--prompts", tmp_path / "p.txt", "--out", samples, "--max-new-tokens", 6
    )
    done("judge", "--quiet", "--model", folder, "--input", samples, "--out", scored)
    assert summary(scored)["missing"] == 0
    assert summary(scored)["mean_label_mass"] > 0
    begins = [row["prompt_ids"][0] for row in read_rows(samples)]
    if name == "llama2":
        assert begins == [1, 1]  # <s>


def test_a_token_beyond_the_embeddings_in_a_prompt_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer of another model: its ids have no embedding here."""
    model = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(str(model))
    (tmp_path / "p.txt").write_text("one zebra\n")
    files = ["--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "s.jsonl")]
    assert main(["sample", "--quiet", "--model", str(model), *files]) == 2
    assert "do not belong together" in capsys.readouterr().err

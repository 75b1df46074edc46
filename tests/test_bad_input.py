"""What a user can get wrong: exit code 2, one line that names it, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import CHATML, NO_SYSTEM, make_model, make_prompts

from selfjudge.cli import main
from selfjudge.store import read_meta, read_rows

Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl", 6)


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must fail; returns the lines of its errors without the program's name."""

    def run(*arguments: Any) -> list[str]:
        capfd.readouterr()
        assert main([str(word) for word in (*arguments, "--quiet")]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert lines
        assert all(line.startswith("selfjudge: ") for line in lines), captured.err
        return [line.removeprefix("selfjudge: ") for line in lines]

    return run


def fake(command: str, *arguments: Any) -> list[str]:
    return [str(word) for word in (command, "--backend", "fake", "--model", "fake", "--quiet", *arguments)]


# Models


def _without(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return change


def _without_tokenizer(folder: Path) -> None:
    _without("tokenizer*")(folder)
    _without("chat_template*")(folder)


def _bin_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _torn_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def _without_end(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


BROKEN = {
    "no config": (_without("config.json"), "the folder has no config.json (and no adapter_config.json)"),
    "no tokenizer": (_without_tokenizer, "the folder has no tokenizer (tokenizer.json and its like)"),
    "no weights": (_without("*.safetensors"), "the folder has no weights in safetensors"),
    "bin only": (_bin_only, "only pytorch_model.bin, which can run code when it is loaded; convert it to safetensors"),
    "encoder-decoder": (_write("config.json", '{"model_type": "t5", "is_encoder_decoder": true}'), "encoder-decoder"),
    "config no JSON": (_write("config.json", "{nope"), "config.json: cannot be read as JSON (Expecting property name"),
    "config a list": (_write("config.json", "[]"), "config.json: must hold a JSON object"),
    "config empty": (_write("config.json", "{}"), "Should have a `model_type` key in its config.json"),
    "unknown type": (_configured(model_type="nosuch"), "model type `nosuch`"),
    "tokenizer no JSON": (_write("tokenizer.json", "{nope"), "no usable tokenizer in "),
    "tokenizer empty": (_write("tokenizer.json", "{}"), "no usable tokenizer in "),
    "torn weights": (_torn_weights, "cannot load "),
    "other width": (_configured(hidden_size=16), "weights are missing or of another shape than config.json says"),
    "more layers": (_configured(num_hidden_layers=2), "weights are missing or of another shape than config.json says"),
    "no end token": (_without_end, "its tokenizer has no end token (set `eos_token` in its configuration)"),
    "broken template": (_write("chat_template.jinja", "{{ nope( }}"), "its chat template cannot be read"),
    "broken adapter": (_write("adapter_config.json", "{"), "adapter_config.json: cannot be read as JSON"),
    "adapter of nothing": (_write("adapter_config.json", "{}"), "names no `base_model_name_or_path`"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_folder(case: str, model: Path, prompts: Path, tmp_path: Path, fails: Run) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "broken"))
    change, expected = BROKEN[case]
    change(folder)
    (line,) = fails("sample", "--model", folder, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    assert str(folder) in line
    assert expected in line
    meta = read_meta(tmp_path / "out.jsonl")
    assert meta is None or not meta["done"]


def test_a_folder_that_is_not_there(prompts: Path, fails: Run) -> None:
    (line,) = fails("sample", "--model", "no-such", "--prompts", prompts)
    assert line == "model no-such: no such folder; give a model folder, a hub name owner/model, or lab or lab-weak"


def test_a_mended_model_goes_on_where_the_broken_one_stopped(
    model: Path, prompts: Path, tmp_path: Path, fails: Run
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "mended"))
    (folder / "tokenizer.json").write_text("{nope")
    command = ["sample", "--model", str(folder), "--prompts", str(prompts), "--out", str(tmp_path / "out.jsonl")]
    fails(*command, "--max-new-tokens", 2)
    shutil.copy(model / "tokenizer.json", folder)
    assert main([*command, "--max-new-tokens", "2", "--quiet"]) == 0
    assert len(list(read_rows(tmp_path / "out.jsonl"))) == 6


def test_a_gpu_that_is_not_there(model: Path, prompts: Path, fails: Run) -> None:
    (line,) = fails("sample", "--model", model, "--prompts", prompts, "--device", "cuda:99")
    assert line.startswith("--device cuda:99: PyTorch finds ")


def test_a_tokenizer_without_single_token_labels(tmp_path: Path, prompts: Path, fails: Run) -> None:
    folder = make_model(tmp_path / "model", words=["A", "B", "C", "D", "maybe"])
    main(fake("sample", "--prompts", prompts, "--out", tmp_path / "samples.jsonl"))
    (line,) = fails("judge", "--model", folder, "--input", tmp_path / "samples.jsonl")
    assert f"tokenizer {folder}: none of 'Yes', ' Yes'" in line
    assert "give other label words in a questions file" in line


def test_a_template_that_refuses_system_turns(tmp_path: Path, fails: Run) -> None:
    folder = make_model(tmp_path / "model", template=NO_SYSTEM)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "system": "Be brief."}\n')
    (line,) = fails("sample", "--model", folder, "--prompts", tmp_path / "p.jsonl")
    assert "its chat template refuses the turns `system user` (System role not supported)" in line
    assert line.endswith("move the system text into the user's turn")


def test_a_template_that_is_not_prefix_stable_is_not_trained_on(tmp_path: Path, fails: Run) -> None:
    template = CHATML.replace("{% if add", "{{ messages | length }}{% if add")
    folder = make_model(tmp_path / "model", template=template)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (line,) = fails("train", "--model", folder, "--input", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    assert "not prefix-stable" in line


def test_prompts_longer_than_the_context(tmp_path: Path, model: Path, fails: Run) -> None:
    rows = [{"id": "short", "prompt": "is"}, {"id": "long", "prompt": "is " * 600}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (line,) = fails("sample", "--model", model, "--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 8)
    assert line.startswith("1 of 2 prompts are too long, the first is long with 6")
    assert "at most 504 fit beside 8 new ones in the 512 of" in line
    (line,) = fails("sample", "--model", model, "--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 512)
    assert line.startswith("--max-new-tokens 512 leaves no room for a prompt in the 512 tokens of")


# Rows


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.jsonl", "", "p.jsonl: no rows"),
        ("p.txt", "\n\n", "p.txt: no rows"),
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', "p.jsonl, row 2: no prompt: found columns promt;"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "p.jsonl, row 2: malformed JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "  "}\n', "p.jsonl, row 2: the prompt is empty"),
        ("p.csv", "prompt,prompt\na,b\n", "p.csv, row 1: the header names the column 'prompt' twice"),
        ("p.docx", "x", "p.docx: unknown file type '.docx'; allowed: .jsonl"),
        ("p.jsonl.gz", "x", "p.jsonl.gz: damaged gzip file"),
        ("p.parquet", "x", "p.parquet: damaged Parquet file"),
    ],
)
def test_malformed_rows(name: str, content: str, expected: str, tmp_path: Path, fails: Run) -> None:
    (tmp_path / name).write_text(content)
    out = tmp_path / "out.jsonl"
    (line,) = fails(*fake("sample", "--prompts", tmp_path / name, "--out", out))
    assert line.startswith(f"{tmp_path}/{expected}")
    assert not out.exists()


def test_each_step_says_what_its_input_lacks(tmp_path: Path, prompts: Path, model: Path, fails: Run) -> None:
    samples, pairs = tmp_path / "samples.jsonl", tmp_path / "pairs.jsonl"
    pairs.write_text('{"id": "x", "prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert main(fake("sample", "--prompts", prompts, "--out", samples)) == 0
    (line,) = fails(*fake("judge", "--input", prompts))
    assert line.startswith(f"{prompts}, row 1: no responses: `selfjudge sample` adds them")
    (line,) = fails("select", "--input", samples)
    assert line == f"{samples}, row 1: no scores: `selfjudge judge` adds them"
    (line,) = fails("train", "--model", model, "--input", samples, "--out", tmp_path / "m")
    assert line.startswith(f"{samples}: p0 has no strengths (`selfjudge select` adds them)")
    (line,) = fails("train", "--model", model, "--input", pairs, "--loss", "irepo", "--out", tmp_path / "m")
    assert line.startswith(f"{pairs}: x has no scores, which --loss irepo needs")
    assert not (tmp_path / "m").exists()


def test_the_oracle_needs_references(tmp_path: Path, fails: Run) -> None:
    prompts, samples = make_prompts(tmp_path / "p.jsonl", 3, references=False), tmp_path / "samples.jsonl"
    assert main(fake("sample", "--prompts", prompts, "--out", samples)) == 0
    (line,) = fails("judge", "--judge", "oracle", "--input", samples, "--out", tmp_path / "scored.jsonl")
    assert line == f"{samples}: 3 rows have no `reference` answer for the oracle judge, the first is p0"
    assert not (tmp_path / "scored.jsonl").exists()


def test_the_input_of_an_unfinished_step(tmp_path: Path, prompts: Path, fails: Run) -> None:
    samples = tmp_path / "samples.jsonl"
    assert main(fake("sample", "--prompts", prompts, "--out", samples)) == 0
    meta = tmp_path / "samples.meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"done": False}))
    (line,) = fails(*fake("judge", "--input", samples))
    assert line == f"{samples}: its `sample` step is not finished; run that command again first"


def test_all_pairs_too_long_to_train_on(tmp_path: Path, model: Path, fails: Run) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "is", "chosen": "Yes " * 600, "rejected": "No"}) + "\n")
    (line,) = fails("train", "--model", model, "--input", pairs, "--out", tmp_path / "m")
    assert line == f"{pairs}: every prompt with its responses exceeds 512 tokens"


# Options


def test_wrong_yaml(tmp_path: Path, fails: Run) -> None:
    for content, expected in (
        ("seed: [1\n", "while parsing a flow sequence"),
        ("- seed\n", "should be a mapping of option names to values"),
    ):
        (tmp_path / "o.yaml").write_text(content)
        (line,) = fails("sample", "--config", tmp_path / "o.yaml")
        assert line.startswith(f"--config {tmp_path}/o.yaml: {expected}")
    (line,) = fails("sample", "--config", tmp_path / "none.yaml")
    assert line == f"--config {tmp_path}/none.yaml: No such file or directory"


def test_a_questions_file_with_missing_keys(tmp_path: Path, prompts: Path, fails: Run) -> None:
    file = tmp_path / "q.toml"
    file.write_text('layout = "x"\n[questions]\nchat = "Good?"\n')
    (line,) = fails(*fake("judge", "--input", prompts, "--questions", file))
    for missing in ("`answer_format`", "no `code`", "no `math`", "no `safety`", "[labels] `yes`", "[labels] `no`"):
        assert missing in line
    (line,) = fails(*fake("judge", "--input", prompts, "--questions", tmp_path / "none.toml"))
    assert line == f"questions file {tmp_path}/none.toml: No such file or directory"


def test_unknown_words_and_commands(fails: Run, prompts: Path) -> None:
    (line,) = fails("smaple", "--model", "x/y")
    assert line.startswith("unknown command 'smaple'; there are align, demo,")
    assert line.endswith("did you mean sample?")
    (line,) = fails(*fake("sample", "--prompts", prompts, "foo"))
    assert line == "unexpected words: foo; options are given as --name value"
    (line,) = fails("sample", "--model")
    assert "--model: expected one argument" in line


# Outputs


def test_the_output_is_a_folder_or_cannot_be_made(tmp_path: Path, prompts: Path, model: Path, fails: Run) -> None:
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    (line,) = fails(*fake("sample", "--prompts", prompts, "--out", folder))
    assert line == f"--out {folder}: is a folder; give a file"
    (line,) = fails(*fake("sample", "--prompts", prompts, "--out", prompts / "x.jsonl"))
    assert line == f"--out {prompts}/x.jsonl: {prompts} is not a folder"
    (line,) = fails("align", "--model", model, "--prompts", prompts, "--out", prompts)
    assert line == f"--out {prompts}: is a file; give a folder"
    (line,) = fails(*fake("sample", "--prompts", prompts, "--out", "/proc/none/x.jsonl"))
    assert line.startswith("/proc/none/x.jsonl: cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_output_folder_is_not_writable(tmp_path: Path, prompts: Path, fails: Run) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    (line,) = fails(*fake("sample", "--prompts", prompts, "--out", folder / "x.jsonl"))
    assert "cannot be written (Permission denied" in line


def test_a_users_file_is_never_taken_for_an_output(prompts: Path, fails: Run) -> None:
    before = prompts.read_bytes()
    (line,) = fails(*fake("sample", "--prompts", prompts, "--out", prompts))
    assert "not an output of selfjudge; give another --out" in line
    assert prompts.read_bytes() == before


def test_a_changed_option_of_a_finished_step(tmp_path: Path, prompts: Path, fails: Run) -> None:
    command = fake("sample", "--prompts", prompts, "--out", tmp_path / "s.jsonl")
    assert main(command) == 0
    before = (tmp_path / "s.jsonl").read_bytes()
    (line,) = fails(*command, "--seed", 3, "--num-responses", 7)
    assert "num_responses: was 4, now 7" in line
    assert "seed: was 0, now 3" in line
    assert "give another --out, or delete the file" in line
    assert (tmp_path / "s.jsonl").read_bytes() == before


def test_two_processes_on_one_output(tmp_path: Path, prompts: Path, fails: Run) -> None:
    import fcntl

    out = tmp_path / "s.jsonl"
    with out.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (line,) = fails(*fake("sample", "--prompts", prompts, "--out", out))
    assert line == f"{out}: another process is writing it; wait for that, or give another --out"


def test_a_full_disk_loses_nothing(tmp_path: Path, child_env: dict[str, str]) -> None:
    """The limit on the size of a file stands for the disk; afterwards the same command goes on."""
    prompts, out = make_prompts(tmp_path / "p.jsonl", 100), tmp_path / "s.jsonl"
    command = [sys.executable, "-m", "selfjudge.cli", *fake("sample", "--prompts", prompts, "--out", out)]

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        def small() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        return subprocess.run(command, env=child_env, capture_output=True, text=True, check=False, preexec_fn=small)

    failed = run(20_000)
    assert failed.returncode == 2
    safe = len(list(read_rows(out)))
    assert 0 < safe < 100
    assert failed.stderr.splitlines() == [
        f"selfjudge: {out}: cannot be written (File too large); {safe} rows are safe; "
        "the same command goes on from there"
    ]
    assert run(10_000_000).returncode == 0
    straight = tmp_path / "straight.jsonl"
    assert main(fake("sample", "--prompts", prompts, "--out", straight)) == 0
    assert out.read_bytes() == straight.read_bytes()


def test_running_out_of_gpu_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, prompts: Path, tmp_path: Path, fails: Run
) -> None:
    import torch

    from selfjudge.backends.fake import FakeBackend

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(FakeBackend, "_sample", full)
    (line,) = fails(*fake("sample", "--prompts", prompts, "--out", tmp_path / "s.jsonl"))
    assert line.startswith("out of GPU memory (CUDA out of memory); lower --token-budget")


def test_interrupting_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from selfjudge.backends.fake import FakeBackend

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeBackend, "_sample", interrupted)
    assert main(fake("sample", "--prompts", prompts, "--out", tmp_path / "s.jsonl")) == 130
    assert capsys.readouterr().err == "selfjudge: interrupted; the same command goes on from here\n"

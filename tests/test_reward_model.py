"""Reward models: logits against plain transformers one by one, what must not change them, what is refused."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import done, summary
from models import make_model, make_prompts
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from selfjudge.backends import BackendOptions, Conversation
from selfjudge.backends.reward_model import RewardModel
from selfjudge.checks import build_checked
from selfjudge.cli import main
from selfjudge.config import AlignConfig
from selfjudge.errors import ConfigError, DataError, ModelError
from selfjudge.judges import JUDGES, JudgeSetup
from selfjudge.models import ModelSource, load_reward_model
from selfjudge.records import Example, Message, Response
from selfjudge.steps import OpenModel
from selfjudge.store import read_rows

WITH_BOS = "<|endoftext|>" + tiny.CHATML
"""The template brings the token that the tokenizer would put first as well."""
ARCHITECTURES = ("llama", "qwen2", "gpt2")
WORDS = ("one", "two", "three", "sum", "of", "Yes", "No", "course", "five", "What", "is", "42", "(x)", "...")


def classifier(name: str, labels: int = 1, **changes: Any) -> Any:
    """A random sequence classifier with a head of standard deviation 1."""
    kind, options = tiny._CONFIGS[name]
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    given = {"vocab_size": tiny.VOCABULARY} | ends | options | changes
    torch.manual_seed(0)
    built = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, num_labels=labels, **given))
    for weight in built.parameters():
        weight.data += torch.randn_like(weight) * (0.25 if weight.dim() > 1 else 0.1)
    built.score.weight.data.normal_(std=1.0)
    return built.eval()


def save(folder: Path, name: str = "llama", template: str | None = WITH_BOS, **changes: Any) -> Path:
    classifier(name, **changes).save_pretrained(str(folder))
    tiny.tokenizer(template).save_pretrained(str(folder))
    return folder


Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder("llama", pad_token_id=None)`: a tiny reward model, made once."""

    @cache
    def made(name: str = "llama", **changes: Any) -> Path:
        return save(tmp_path_factory.mktemp(name), name, **changes)

    return made


def opened(path: Path, **options: Any) -> RewardModel:
    return RewardModel(str(path), BackendOptions(device="cpu", **options))


def together(model: RewardModel) -> RewardModel:
    """Batches, as on a GPU."""
    model.most_together = 1 << 30
    return model


def conversations(number: int = 12) -> list[Conversation]:
    """Responses of 1 to 40 words, some after several turns."""
    rng = random.Random(0)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    turns = (Message("user", "Is it?"), Message("assistant", "Yes"))
    return [
        Conversation(str(i), (*(turns if i % 3 == 0 else ()), Message("user", words(20))), words(40))
        for i in range(number)
    ]


@torch.no_grad()
def plain(path: Path, given: list[Conversation]) -> list[float]:
    """What a model card shows: the template's ids, one sequence, the logit."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(path))
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    found: list[float] = []
    for _, messages, response in given:
        turns = [message._asdict() for message in (*messages, Message("assistant", response))]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        found.append(model(torch.tensor([ids])).logits[0, 0].item())
    return found


# Logits


@pytest.mark.parametrize("pad", [0, None, 2], ids=["own", "none", "the end token"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_logits_of_plain_transformers(name: str, pad: int | None, folder: Folder):
    """One by one and in padded batches, for a model with a token to pad with, without one, and with one that is used.

    Conversations end in a line break behind the end token, so an end token that pads is not taken for the last one.
    """
    path = folder(name, pad_token_id=pad)
    given = conversations()
    expected = plain(path, given)
    alone, batched = opened(path), together(opened(path, token_budget=400))
    assert [logit for logit, _ in alone.score(given)] == pytest.approx(expected, abs=1e-5)
    assert [logit for logit, _ in batched.score(given)] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1
    assert not any(truncated for _, truncated in batched.score(given))


def test_nothing_fills_up_what_a_sequence_ends_with(folder: Folder):
    """Without a token of its own the model is read at the last token, so that no sequence may end with the filling."""
    model = opened(folder("llama", pad_token_id=None))
    batch = [[5, 6, 7, 0], [5, 1], [9]]
    alone = [model._logits([ids])[0] for ids in batch]
    assert model._padding(batch) == 2
    assert model._logits(batch) == pytest.approx(alone, abs=1e-5)


def test_batches_keep_to_their_budget_and_do_not_matter(folder: Folder):
    model = together(opened(folder(), token_budget=300))
    sizes: list[tuple[int, int]] = []
    model.classifier.model.embed_tokens.register_forward_hook(lambda _, ids, __: sizes.append(tuple(ids[0].shape)))
    given = conversations(30)
    found = model.score(given)
    assert all(rows * width <= 300 for rows, width in sizes)
    assert max(rows for rows, _ in sizes) > 2
    backwards = model.score(given[::-1])[::-1]
    assert [logit for logit, _ in backwards] == pytest.approx([logit for logit, _ in found], abs=1e-5)
    sizes.clear()
    model.most_together = 1
    model.score(given)
    assert len(sizes) == 30


def test_out_of_memory_halves_the_budget_and_says_so(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    model = together(opened(folder(), token_budget=1000, say=said.append))
    given = conversations(20)
    expected = [logit for logit, _ in model.score(given)]
    logits = model._logits

    def limited(batch: list[list[int]]) -> list[float]:
        if len(batch) * len(batch[0]) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits(batch)

    monkeypatch.setattr(model, "_logits", limited)
    assert [logit for logit, _ in model.score(given)] == pytest.approx(expected, abs=1e-5)
    assert said
    assert model.budget.tokens <= 500


def test_the_first_token_comes_once(folder: Folder):
    """The template writes it; the tokenizer must not put another one in front."""
    path = folder()
    model = opened(path)
    ids = model._show(conversations(1)[0]).ids
    first = AutoTokenizer.from_pretrained(str(path)).pad_token_id  # <|endoftext|>
    assert ids[0] == first
    assert first not in ids[1:]


def test_raw_logits_beyond_17_do_not_tie(tmp_path: Path):
    """Their sigmoids are all exactly 1.0 in float32; the logits stand 1,000 times as far apart as with the head given.

    (The hidden states are those of the model; only its head is scaled.)
    """
    model = classifier("llama")
    given = conversations()
    model.score.weight.data *= 1000
    model.save_pretrained(str(tmp_path))
    tiny.tokenizer(WITH_BOS).save_pretrained(str(tmp_path))
    logits = [logit for logit, _ in opened(tmp_path).score(given)]
    large = [logit for logit in logits if logit > 17]
    assert len(large) > 2
    assert set(torch.tensor(large).sigmoid().tolist()) == {1.0}
    assert len({*large}) == len(large)


def test_half_precision_keeps_the_head_in_float32(folder: Folder):
    """A float32 sum has more digits than bfloat16 can hold: some logit is no bfloat16 number, and all are near."""
    path = folder()
    given = conversations()
    half, full = opened(path, dtype="bfloat16"), opened(path, dtype="float32")
    assert half.classifier.dtype == torch.bfloat16
    logits = [logit for logit, _ in half.score(given)]
    assert any(torch.tensor(logit).bfloat16().item() != logit for logit in logits)
    expected = [logit for logit, _ in full.score(given)]
    assert logits == pytest.approx(expected, abs=0.1 * (max(expected) - min(expected)))


def test_a_long_response_loses_its_middle(folder: Folder):
    """The end of the response decides the logit still; the prompt stays whole."""
    model = opened(folder(), max_length=120)
    turns = (Message("user", "Is it?"),)
    given = [Conversation("x", turns, " ".join(["sum"] * 300) + end) for end in (" Yes", " No")]
    (yes, cut), (no, _) = model.score([*given])
    assert cut
    assert yes != no
    shown = model.renderer.tokenizer.decode(model._show(given[0]).ids)
    assert "Is it?" in shown
    assert "[...]" in shown
    assert len(model._show(given[0]).ids) <= 120
    with pytest.raises(DataError, match="x: the prompt alone exceeds the 120 tokens"):
        model.score([Conversation("x", (Message("user", "of " * 300),), "Yes")])


# The judge


class Scripted:
    """Gives logits from a table; remembers what it was asked."""

    def __init__(self, logits: dict[str, float]) -> None:
        self.logits = logits
        self.asked: list[Conversation] = []

    def score(self, given: Any) -> list[tuple[float, bool]]:
        self.asked += given
        return [(self.logits[one.response], one.response == "long") for one in given]

    def close(self) -> None:
        """Holds nothing."""


def test_repeated_responses_are_scored_once_and_a_nan_is_missing():
    scorer = Scripted({"4": 2.5, "5": math.nan, "long": -1.0})
    turns = (Message("user", "What is 2 + 2?"),)
    example = Example("e1", turns, None, tuple(map(Response, ("4", "5", "4", "long"))))
    scored = JUDGES["reward-model"].make(JudgeSetup(scorers=(scorer,)))([example])[0]
    assert [one.response for one in scorer.asked] == ["4", "5", "long"]
    assert [score.value for score in scored.scores] == pytest.approx([2.5, math.nan, 2.5, -1.0], nan_ok=True)
    assert scored.scores[1].reason == "the reward model's logit is nan"
    assert [score.truncated for score in scored.scores] == [False, False, False, True]
    assert all(math.isnan(score.label_mass) for score in scored.scores)
    assert scored.category is None  # nobody was asked for it


def test_one_model_is_kept_open(folder: Folder):
    config: Any = build_checked(AlignConfig, {"model": "lab", "prompts": "lab", "device": "cpu"})
    with OpenModel(lambda _: None) as model:
        first = model.get_all(config, [str(folder())], "reward model")[0]
        assert model.get_all(config, [str(folder())], "reward model")[0] is first
        model.get(config)
        assert model.get_all(config, [str(folder())], "reward model")[0] is not first


# Loading


def load(path: Path) -> Any:
    return load_reward_model(ModelSource(str(path), "cpu"))


def test_a_model_that_writes_text_is_refused(model_folder: Callable[..., str]):
    """transformers would put random numbers where its score head should be."""
    message = r"1 weights are missing .* the first is score\.weight: this is no reward model \(a model that writes"
    with pytest.raises(ModelError, match=message):
        load(Path(model_folder("llama")))


def test_several_outputs_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="its head has num_labels 3; a reward model has 1"):
        load(save(tmp_path, labels=3))


def test_a_head_of_another_shape_is_refused(tmp_path: Path):
    save(tmp_path, labels=3)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_labels": 1}))
    with pytest.raises(ModelError, match=r"or of another shape than config\.json says, the first is score\.weight"):
        load(tmp_path)


def test_no_chat_template_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no chat template, and a reward model's logit means something only"):
        load(save(tmp_path, template=None))


def test_pickled_weights_are_refused(tmp_path: Path):
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no weights in safetensors, only pytorch_model\.bin"):
        load(tmp_path)


@pytest.mark.parametrize("whole", [True, False], ids=["with its head", "without a head"])
def test_an_adapter(whole: bool, model_folder: Callable[..., str], tmp_path: Path):
    """Its base is a model that writes text; the head comes with the adapter, or the adapter is refused."""
    base = AutoModelForSequenceClassification.from_pretrained(model_folder("llama"), num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    adapted: Any = get_peft_model(base, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or "score.modules_to_save" in name:
            weight.data.normal_(std=0.5)
    adapted.save_pretrained(str(tmp_path))
    tiny.tokenizer().save_pretrained(str(tmp_path))
    if not whole:
        from safetensors.torch import load_file, save_file

        weights = load_file(tmp_path / "adapter_model.safetensors")
        assert any("score" in name for name in weights)
        save_file({n: w for n, w in weights.items() if "score" not in n}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=r"the first is score\.weight: this is no reward model"):
            load(tmp_path)
        return
    model = opened(tmp_path)
    given = conversations(4)
    ids = [torch.tensor([model._show(one).ids]) for one in given]
    with torch.no_grad():
        expected = [adapted.eval()(one).logits[0, 0].item() for one in ids]
    assert [logit for logit, _ in model.score(given)] == pytest.approx(expected, abs=1e-5)


# The commands


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"Is {i} it?", "chosen": f"Yes, {i}.", "rejected": "No."} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bench_and_judge(folder: Folder, pairs: Path, tmp_path: Path):
    """Both give the same logits, those of the model one by one; in `bench` --model alone is the reward model."""
    done("bench", "--model", folder(), "--judge", "reward-model", "--benchmark", pairs, "--out", tmp_path, "--quiet")
    done("judge", "--model", folder(), "--judge", "reward-model", "--input", pairs, "--out", tmp_path / "j.jsonl")
    rows = [Example.from_json(row) for row in read_rows(tmp_path / "rows.jsonl")]
    given = [Conversation(row.id, row.messages, response.text) for row in rows for response in row.responses]
    expected = plain(folder(), given)
    assert [score.value for row in rows for score in row.scores] == pytest.approx(expected, abs=1e-5)
    again = [Example.from_json(row).scores for row in read_rows(tmp_path / "j.jsonl")]
    assert again == [row.scores for row in rows]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["unit"], results["judged_by"]) == ("logit", [str(folder())])
    right = [row.scores[0].value > row.scores[1].value for row in rows]  # the chosen response comes first
    assert {row.gold for row in rows} == {(0,)}
    assert results["figures"]["judge_strict"] == pytest.approx(sum(right) / 6)


def test_align(folder: Folder, tmp_path: Path):
    """The policy samples and is trained, the reward model judges."""
    make_model(tmp_path / "policy")
    make_prompts(tmp_path / "prompts.jsonl", 30)
    small = ["--rounds", 1, "--max-new-tokens", 4, "--num-responses", 3, "--eval-samples", 1, "--keep-unfinished"]
    judge = ["--judge", "reward-model", "--judge-model", folder()]
    paths = ["--model", tmp_path / "policy", "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "run"]
    done("align", *paths, *small, *judge, "--quiet")
    file = tmp_path / "run" / "round-1" / "scored.jsonl"
    rows = [Example.from_json(row) for row in read_rows(file)]
    assert summary(file)["missing"] == 0
    given = [Conversation(row.id, row.messages, response.text) for row in rows for response in row.responses]
    assert [s.value for row in rows for s in row.scores] == pytest.approx(plain(folder(), given), abs=1e-4)
    assert "reward-model: the raw logit" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge-model", "a/b,c/d"], "--judge-model a/b,c/d: the reward-model judge asks one model"),
        (["--votes", "hard"], "--votes has no effect with --judge reward-model"),
        (["--label-mass", "0.5"], "--label-mass has no effect with --judge reward-model"),
        (["--in-place"], "--in-place has no effect with --judge reward-model"),
        (["--backend", "fake", "--judge-model", "/no/such"], "model /no/such: no such folder"),
    ],
)
def test_options_that_do_nothing(
    options: list[str], message: str, folder: Folder, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    paths = ["--model", str(folder()), "--benchmark", str(pairs), "--out", str(tmp_path / "o")]
    assert main(["bench", "--judge", "reward-model", *paths, *options]) == 2
    assert capfd.readouterr().err.splitlines()[0].startswith(f"selfjudge: {message}")


def test_a_run_needs_a_model_beside_the_one_that_is_trained():
    with pytest.raises(ConfigError, match="--judge-model is needed by the reward-model judge"):
        build_checked(AlignConfig, {"model": "lab", "prompts": "lab", "judge": "reward-model"})

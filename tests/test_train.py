"""The train step: its first loss, equality with TRL, and everything that must not change what is learned."""

from __future__ import annotations

import copy
import json
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tiny
import torch
from models import make_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from selfjudge.api import train
from selfjudge.backends import BackendOptions, SampleRequest, Sampling
from selfjudge.backends.hf import HFBackend
from selfjudge.checkpoints import MarkComplete
from selfjudge.errors import ConfigError, DataError, ModelError, StepError
from selfjudge.models import ModelSource, load_model
from selfjudge.records import Example, Message, Response
from selfjudge.rendering import Renderer
from selfjudge.steps.train import TOKENS_AT_ONCE, hash_share
from selfjudge.store import read_rows
from selfjudge.trainer import PreferenceTrainer

PROMPTS = 18
LOG2 = math.log(2)
QUICK: dict[str, Any] = {"device": "cpu", "quiet": True, "batch_size": 4, "validation": 0, "learning_rate": 1e-3}
FULL = QUICK | {"lora_rank": 0}
LORA = QUICK | {"lora_rank": 4, "lora_alpha": 8}

ModelFolder = Callable[..., str]


@pytest.fixture(scope="module")
def sampled(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`sampled("llama")`: a file of that model's own responses, three per prompt, with strengths; made once."""
    made: dict[Any, str] = {}

    def file(name: str, template: str | None = tiny.CHATML) -> str:
        if (name, template) not in made:
            path = tmp_path_factory.mktemp("rows") / "selected.jsonl"
            write(path, sample(model_folder(name, template)))
            made[name, template] = str(path)
        return made[name, template]

    return file


def sample(folder: str) -> list[Example]:
    backend = HFBackend(folder, BackendOptions(device="cpu"))
    asked = {f"p{i}": (Message("user", f"What is {i} and {i * 7}?"),) for i in range(PROMPTS)}
    requests = [SampleRequest(key, messages) for key, messages in asked.items()]
    batches = list(backend.generate(requests, Sampling(3, 1.0, max_new_tokens=10)))
    results = {result.key: result for batch in batches for result in batch}
    return [
        Example(
            key,
            messages,
            prompt_ids=results[key].prompt_ids,
            responses=results[key].responses,
            strengths=(1.0 + i % 5, 0.3, -1.5 - i % 2),
        )
        for i, (key, messages) in enumerate(asked.items())
    ]


def write(path: Path, examples: list[Example]) -> str:
    path.write_text("".join(json.dumps(example.to_json()) + "\n" for example in examples))
    return str(path)


def read(path: str) -> list[Example]:
    return [Example.from_json(row) for row in read_rows(path)]


def pairs(path: Path, count: int = PROMPTS) -> str:
    """A user's file: no token ids, no scores."""
    rows = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i * 3} of course", "rejected": f"No {i}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def steps(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(out / "training.jsonl") if row["kind"] == "step"]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in steps(out)]


def weights(out: Path) -> dict[str, Tensor]:
    (file,) = (out / "model").glob("*.safetensors")
    return load_file(file)


def difference(first: Path, second: Path) -> float:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


# The first step


@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "lora"])
def test_first_dpo_loss_is_log_2(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, options: Any):
    summary = train(model_folder("llama"), sampled("llama"), str(tmp_path), **options)
    assert summary["reference"] == "sample"
    assert summary["prompts"] == PROMPTS
    assert summary["steps"] == len(steps(tmp_path)) == math.ceil(PROMPTS / 4)
    assert summary["first_loss"] == losses(tmp_path)[0] == pytest.approx(LOG2, abs=1e-4)
    assert abs(summary["last_loss"] - LOG2) > 1e-3  # something was learned


def test_first_irepo_loss_is_the_mean_of_clipped_squares(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path
):
    """All pairs of three: z = a - b, b - c, a - c, clipped at 3; the mean over pairs, then over prompts."""
    options = FULL | {"loss": "irepo", "z_max": 3.0, "batch_size": PROMPTS, "reference": "start"}
    summary = train(model_folder("llama"), sampled("llama"), str(tmp_path), **options)
    expected: list[float] = []
    for example in read(sampled("llama")):
        a, b, c = example.strengths
        expected.append(sum(min(z, 3.0) ** 2 for z in (a - b, b - c, a - c)) / 3)
    assert summary["first_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    targets = [(e.strengths[0] - e.strengths[2]) * 2 / 3 for e in read(sampled("llama"))]
    assert steps(tmp_path)[0]["target"] == pytest.approx(sum(targets) / len(targets), rel=1e-5)


@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("name", "rate"), [("gpt2-dropout", "attn_pdrop"), ("opt-dropout", "dropout")])
def test_dropout_is_off(model_folder: ModelFolder, tmp_path: Path, name: str, rate: str, options: Any):
    """The configurations of GPT-2 and OPT have dropout 0.1: with it the first loss would not be log 2."""
    folder = model_folder(name)
    assert json.loads((Path(folder) / "config.json").read_text())[rate] == 0.1
    train(folder, pairs(tmp_path / "pairs.jsonl"), str(tmp_path), **options)
    assert losses(tmp_path)[0] == pytest.approx(LOG2, abs=1e-5)


# TRL


@pytest.mark.parametrize(("name", "schedule"), [("llama", "linear"), ("gpt2", "constant")])
def test_equals_trl(model_folder: ModelFolder, tmp_path: Path, name: str, schedule: str):
    """Loss after loss over 20 steps, all weights trained; TRL gets the same text and end token."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    file, folder = pairs(tmp_path / "pairs.jsonl", 80), model_folder(name)
    train(folder, file, str(tmp_path / "ours"), **FULL | {"schedule": schedule, "warmup": 0, "beta": 0.3, "seed": 3})
    model, tokenizer = load_model(ModelSource(folder, "cpu"))
    renderer = Renderer(tokenizer, name)
    rows = [
        {
            "prompt": renderer.text((Message("user", row["prompt"]),)),
            "chosen": row["chosen"] + tiny.END,
            "rejected": row["rejected"] + tiny.END,
        }
        for row in map(json.loads, Path(file).read_text().splitlines())
    ]
    arguments = DPOConfig(
        output_dir=str(tmp_path / "theirs"),
        beta=0.3,
        learning_rate=1e-3,
        lr_scheduler_type=schedule,
        warmup_steps=0,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        seed=3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    theirs = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    norms = [record["grad_norm"] for record in trainer.state.log_history if "loss" in record]
    assert len(theirs) == 20
    assert abs(theirs[-1] - LOG2) > 0.05
    assert losses(tmp_path / "ours") == pytest.approx(theirs, abs=1e-4)
    assert [row["grad_norm"] for row in steps(tmp_path / "ours")] == pytest.approx(norms, rel=1e-3)
    state = model.state_dict()
    for key, weight in weights(tmp_path / "ours").items():
        # a bias on all keys changes no attention: its gradient is rounding alone, which AdamW scales up to full steps
        if not key.endswith("c_attn.bias"):
            assert (weight - state[key]).abs().max() < 1e-4, key


# What must not change the result


@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "change",
    [{"micro_batch": 1}, {"micro_batch": 2}, {"token_budget": 40}, {"gradient_checkpointing": True}],
    ids=str,
)
def test_memory_options_change_nothing(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, options: Any, change: dict[str, Any]
):
    """18 prompts in batches of 4: the last batch of 2 is part of the test. Two epochs."""
    options = options | {"epochs": 2, "learning_rate": 1e-4, "reference": "start", "loss": "irepo"}
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "a"), **options)
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "b"), **options | change)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)
    assert difference(tmp_path / "a", tmp_path / "b") < 1e-6


def test_a_backward_pass_holds_a_bounded_number_of_tokens(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The default micro-batch: 4 prompts are cut to 2 where only two of the longest fit, to 1 where none does."""
    file = sampled("llama")
    rows = [Example.from_json(row) for row in read_rows(file)]
    longest = max(len(row.prompt_ids or ()) + sum(len(r.token_ids or ()) for r in row.responses) for row in rows)
    for tokens, largest in ((4 * longest, 4), (4 * longest - 1, 2), (2 * longest, 2), (longest - 1, 1)):
        seen = recorded_batches(monkeypatch)
        monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", tokens)
        train(model_folder("llama"), file, str(tmp_path / str(tokens)), **FULL | {"epochs": 1})
        assert max(len(batch) for batch in seen) == largest
        assert sum(len(batch) for batch in seen) == PROMPTS
        monkeypatch.undo()


@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "lora"])
def test_resumed_is_straight(
    model_folder: ModelFolder,
    sampled: Callable[..., str],
    tmp_path: Path,
    options: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    """Killed after step 7 of 10 with checkpoints every 3: weights equal bit for bit, each step logged once."""
    options = options | {"epochs": 2, "save_steps": 3, "validation": 0.2}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(model_folder("llama"), sampled("llama"), str(straight), **options)
    plain = PreferenceTrainer.log

    def dies(self: PreferenceTrainer, logs: dict[str, float], *rest: Any) -> None:
        plain(self, logs, *rest)
        if self.state.global_step == 7 and "loss" in logs:
            raise KeyboardInterrupt

    monkeypatch.setattr(PreferenceTrainer, "log", dies)
    with pytest.raises(KeyboardInterrupt):
        train(model_folder("llama"), sampled("llama"), str(resumed), **options)
    assert not (resumed / "model").exists()
    assert len(steps(resumed)) == 7
    monkeypatch.undo()
    seen = recorded_batches(monkeypatch)
    summary = train(model_folder("llama"), sampled("llama"), str(resumed), **options)
    assert 0 < len(seen) < summary["steps"] - 4  # it did not start from the beginning
    assert losses(resumed) == losses(straight)
    assert [row["id"] for row in read_rows(resumed / "training.jsonl")] == [
        row["id"] for row in read_rows(straight / "training.jsonl")
    ]
    assert difference(straight, resumed) == 0
    again = train(model_folder("llama"), sampled("llama"), str(resumed), **options)
    assert again == summary


def recorded_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Ids of every batch that a trainer computes a training loss on."""
    seen: list[list[str]] = []
    plain = PreferenceTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *rest: Any, **options: Any) -> Tensor:
        seen.append([preference.id for preference in inputs["preferences"]])
        assert model.training
        return plain(self, model, inputs, *rest, **options)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", compute_loss)
    return seen


def test_validation_prompts_are_never_trained_on(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = recorded_batches(monkeypatch)
    options = FULL | {"validation": 0.3, "epochs": 3}
    summary = train(model_folder("llama"), sampled("llama"), str(tmp_path), **options)
    kept = {f"p{i}" for i in range(PROMPTS) if hash_share(f"p{i}") < 0.3}
    trained = [key for batch in seen for key in batch]
    assert len(kept) == summary["validation_prompts"] > 0
    assert not kept & set(trained)
    assert sorted(trained) == sorted(3 * [f"p{i}" for i in range(PROMPTS) if f"p{i}" not in kept])
    orders = [trained[i * summary["prompts"] : (i + 1) * summary["prompts"]] for i in range(3)]
    assert orders[0] != orders[1]  # shuffled anew
    assert len([row for row in read_rows(tmp_path / "training.jsonl") if row["kind"] == "validation"]) == 3


def test_nothing_left_to_train_on(model_folder: ModelFolder, tmp_path: Path):
    file = pairs(tmp_path / "pairs.jsonl", 1)
    with pytest.raises(StepError, match=r"no prompt is left to train on \(1 in all, 1 for validation\)"):
        train(model_folder("llama"), file, str(tmp_path / "out"), **FULL | {"validation": 0.999999})


def test_the_seed_decides_adapter_and_order(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same seed gives the same bits; another one another adapter (steps are 1e-3, A starts at about 0.1)."""
    seen = recorded_batches(monkeypatch)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(model_folder("llama"), sampled("llama"), str(tmp_path / name), **LORA | {"seed": seed})
    assert difference(tmp_path / "a", tmp_path / "b") == 0
    assert difference(tmp_path / "a", tmp_path / "c") > 0.1
    first, second, third = (seen[i : i + 5] for i in (0, 5, 10))
    assert first == second != third


# The reference


def test_reference_from_the_sample_or_computed_again(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path
):
    for reference in ("sample", "start"):
        options = FULL | {"reference": reference}
        summary = train(model_folder("llama"), sampled("llama"), str(tmp_path / reference), **options)
        assert summary["reference"] == reference
    # rounding of 1e-6 in the reference, which AdamW scales up where a gradient is nearly 0
    assert losses(tmp_path / "sample") == pytest.approx(losses(tmp_path / "start"), abs=5e-4)


def test_samples_of_another_model_are_noticed(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    other = model_folder("llama", seed=1)
    summary = train(other, sampled("llama"), str(tmp_path), **FULL | {"quiet": False})
    assert summary["reference"] == "start"
    assert "computing the reference anew" in capfd.readouterr().err
    assert losses(tmp_path)[0] == pytest.approx(LOG2, abs=1e-5)


def test_missing_logprobs_are_computed(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    examples = read(sampled("llama"))
    last = examples[-1]
    bare = tuple(Response(r.text, r.token_ids) for r in last.responses)
    examples[-1] = Example(last.id, last.messages, prompt_ids=last.prompt_ids, responses=bare, strengths=last.strengths)
    file = write(tmp_path / "selected.jsonl", examples)
    assert train(model_folder("llama"), file, str(tmp_path / "out"), **FULL)["reference"] == "start"


def test_a_new_adapter_is_its_base(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    """Reference `base` and `start` are the same then."""
    for reference in ("base", "start"):
        options = LORA | {"reference": reference}
        summary = train(model_folder("llama"), sampled("llama"), str(tmp_path / reference), **options)
        assert summary["reference"] == reference
    assert losses(tmp_path / "base") == pytest.approx(losses(tmp_path / "start"), abs=1e-6)
    assert difference(tmp_path / "base", tmp_path / "start") < 1e-6


def test_an_adapter_goes_on(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    """From `start` its loss begins at log 2 again, from `base` where the first training left off."""
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "one"), **LORA | {"epochs": 3})
    adapter = str(tmp_path / "one" / "model")
    for reference in ("start", "base"):
        options = LORA | {"reference": reference}
        train(adapter, sampled("llama"), str(tmp_path / reference), **options)
    assert losses(tmp_path / "start")[0] == pytest.approx(LOG2, abs=1e-5)
    assert losses(tmp_path / "base")[0] < LOG2 - 0.01
    config = json.loads((tmp_path / "base" / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model_folder("llama")
    assert config["r"] == 4
    assert difference(tmp_path / "one", tmp_path / "start") > 1e-4
    model, _ = load_model(ModelSource(str(tmp_path / "start" / "model"), "cpu"))
    assert len([name for name, _ in model.named_parameters() if "lora_A" in name]) == 14  # 7 layers, twice: one adapter


def test_the_first_model_as_reference(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    """The first model is the one that an adapter was trained on; with the model itself it is `start`."""
    base = model_folder("llama")
    train(base, sampled("llama"), str(tmp_path / "one"), **LORA | {"epochs": 3})
    adapter = str(tmp_path / "one" / "model")
    first = {"reference": "first", "reference_model": base}
    for out, model, options in (
        ("base", adapter, LORA | {"reference": "base"}),
        ("first", adapter, LORA | first),
        ("start", base, FULL | {"reference": "start"}),
        ("itself", base, FULL | first),
    ):
        summary = train(model, sampled("llama"), str(tmp_path / out), **options)
        assert summary["reference"] == options["reference"]
    assert losses(tmp_path / "first")[0] < LOG2 - 0.01
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "base"), abs=1e-6)
    assert losses(tmp_path / "itself") == losses(tmp_path / "start")
    assert difference(tmp_path / "itself", tmp_path / "start") == 0


def test_the_first_model_is_gone_before_the_other_is_loaded(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        found = load_model(*arguments, **options)
        assert not any(earlier() for earlier in loaded)
        loaded.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr("selfjudge.reference.load_model", load)
    monkeypatch.setattr("selfjudge.steps.train.load_model", load)
    options = FULL | {"reference": "first", "reference_model": model_folder("llama", seed=1)}
    train(model_folder("llama"), sampled("llama"), str(tmp_path), **options)
    assert len(loaded) == 2


def test_a_first_model_of_another_family_is_refused(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path
):
    other = make_model(tmp_path / "other", positions=8)
    options = FULL | {"reference": "first", "reference_model": str(other)}
    with pytest.raises(ConfigError, match=r"reference-model .*other: its tokenizer is not that of --model"):
        train(model_folder("llama"), sampled("llama"), str(tmp_path / "out"), **options)
    shutil.copytree(model_folder("llama"), tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 8}))
    options["reference_model"] = str(tmp_path / "short")
    with pytest.raises(ConfigError, match=r"takes in 8 tokens, the longest prompt .* has \d+; lower --max-length to 8"):
        train(model_folder("llama"), sampled("llama"), str(tmp_path / "out2"), **options)


# What is saved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "lora"])
def test_saved_models_load_again(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, options: Any, dtype: str
):
    train(model_folder("llama"), sampled("llama"), str(tmp_path), **options | {"dtype": dtype, "save_steps": 2})
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".jinja", ".md"}
    assert not (tmp_path / "checkpoints").exists()
    folder = tmp_path / "model"
    (file,) = folder.glob("*.safetensors")
    if options is FULL:
        with safe_open(file, "pt") as opened:
            dtypes = {opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118
        assert dtypes == {getattr(torch, dtype)}
    model, tokenizer = load_model(ModelSource(str(folder), "cpu", "float32"))
    start, _ = load_model(ModelSource(model_folder("llama"), "cpu"))
    ids = torch.tensor([tokenizer.encode("What is the sum?")])
    with torch.no_grad():
        change = (model(ids).logits - start(ids).logits).abs().max()
    assert 1e-3 < change < 5
    assert tokenizer.chat_template == tiny.CHATML
    assert tokenizer.eos_token == tiny.END


def test_saved_weights_are_the_trained_ones(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    """The loaded model's log-ratios give the loss that training ended on: trained on one batch, then measured."""
    options = FULL | {"batch_size": PROMPTS, "epochs": 3, "reference": "start"}
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "three"), **options | {"schedule": "constant"})
    train(
        model_folder("llama"),
        sampled("llama"),
        str(tmp_path / "two"),
        **options | {"epochs": 2, "schedule": "constant"},
    )
    assert losses(tmp_path / "two") == losses(tmp_path / "three")[:2]
    model, _ = load_model(ModelSource(str(tmp_path / "two" / "model"), "cpu"))
    start, _ = load_model(ModelSource(model_folder("llama"), "cpu"))
    expected = sum(plain_dpo(model, start, example) for example in read(sampled("llama"))) / PROMPTS
    assert losses(tmp_path / "three")[2] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def plain_dpo(model: Any, start: Any, example: Example) -> float:
    """Mean over the three pairs of -log sigmoid(0.1 D), each response alone through both models."""
    prompt = list(example.prompt_ids or ())
    ratios: list[float] = []
    for response in example.responses:
        ids = torch.tensor([prompt + list(response.token_ids or ())])
        logps = [torch.log_softmax(m(ids).logits[0], -1)[:-1].gather(1, ids[0, 1:, None]) for m in (model, start)]
        ratios.append(sum((sign * x[len(prompt) - 1 :].sum()).item() for sign, x in zip((1, -1), logps, strict=True)))
    margins = [ratios[i] - ratios[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    return sum(math.log1p(math.exp(-0.1 * margin)) for margin in margins) / 3


# A user's pairs


@pytest.mark.parametrize("template", [tiny.CHATML, None], ids=["chat", "plain"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_users_pairs(model_folder: ModelFolder, tmp_path: Path, name: str, template: str | None):
    """Mistral's window of 16 tokens is too short for packed rows: padded, and learning all the same."""
    file = pairs(tmp_path / "pairs.jsonl")
    summary = train(model_folder(name, template), file, str(tmp_path / "out"), **FULL | {"epochs": 2})
    assert summary["reference"] == "start"
    assert summary["first_loss"] == pytest.approx(LOG2, abs=1e-5)
    assert summary["last_loss"] < LOG2 - 0.05
    assert summary["accuracy"] > 0.9


def test_packed_and_padded_learn_the_same(model_folder: ModelFolder, tmp_path: Path):
    """The same weights with a window of 16 and of 512 tokens would differ in attention; so pad a model by decree."""
    file = pairs(tmp_path / "pairs.jsonl")
    train(model_folder("llama"), file, str(tmp_path / "packed"), **FULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfjudge.forward.unsupported", lambda *_: "it was asked for")
        train(model_folder("llama"), file, str(tmp_path / "padded"), **FULL)
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "packed"), abs=1e-5)


def test_an_unstable_template(model_folder: ModelFolder, tmp_path: Path):
    with pytest.raises(ModelError, match="not prefix-stable"):
        train(model_folder("llama", tiny.UNSTABLE), pairs(tmp_path / "p.jsonl"), str(tmp_path / "out"), **FULL)


@pytest.mark.parametrize("loss", ["irepo", "soft-bce"])
def test_gold_pairs_have_no_targets(model_folder: ModelFolder, tmp_path: Path, loss: str):
    with pytest.raises(DataError, match=f"no scores, which --loss {loss} needs"):
        train(model_folder("llama"), pairs(tmp_path / "p.jsonl"), str(tmp_path / "out"), **FULL | {"loss": loss})


def test_rows_longer_than_the_context_are_left_out(model_folder: ModelFolder, tmp_path: Path):
    """GPT-2 has no position beyond its 512; nothing is cut."""
    file = tmp_path / "p.jsonl"
    rows = [{"id": "a", "prompt": "x", "chosen": "Yes", "rejected": "No"}]
    rows += [{"id": "b", "prompt": "x", "chosen": "Yes " * 600, "rejected": "No"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = train(model_folder("gpt2"), str(file), str(tmp_path / "out"), **FULL)
    assert (summary["prompts"], summary["too_long"]) == (1, 1)
    with pytest.raises(DataError, match="every prompt with its responses exceeds 9 tokens"):
        train(model_folder("gpt2"), str(file), str(tmp_path / "out2"), **FULL | {"max_length": 9})


@pytest.mark.parametrize("gold", [[0, 1], []], ids=str)
def test_a_row_without_a_pair(model_folder: ModelFolder, tmp_path: Path, gold: list[int]):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "x", "responses": ["Yes", "No"], "gold": gold}) + "\n")
    with pytest.raises(DataError, match="a has no pair to train on: 2 responses with strengths"):
        train(model_folder("llama"), str(file), str(tmp_path / "out"), **FULL)


def test_equal_strengths_are_no_pair(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    examples = read(sampled("llama"))
    examples[3] = replace(examples[3], strengths=(1.0, 1.0, 1.0))
    file = write(tmp_path / "p.jsonl", examples)
    with pytest.raises(DataError, match="p3 has no pair to train on"):
        train(model_folder("llama"), file, str(tmp_path / "out"), **FULL)


def test_a_single_step_learns_although_warm_up_starts_at_zero(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path
):
    """int(1 step * 0.1) = 0 steps of warm-up: the only step has the full learning rate."""
    options = FULL | {"warmup": 0.1, "batch_size": 1000, "epochs": 1, "schedule": "linear"}
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "out"), **options)
    rows = [row for row in read_rows(tmp_path / "out" / "training.jsonl") if row["kind"] == "step"]
    assert [row["learning_rate"] for row in rows] == [FULL["learning_rate"]]


# Stopping early


EARLY = {"validation": 0.3, "epochs": 12, "early_stop": 3, "learning_rate": 3e-3, "schedule": "constant", "warmup": 0}


def validations(out: Path) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in read_rows(out / "training.jsonl") if row["kind"] == "validation"}


@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("eval_steps", [0, 2])
def test_early_stop_keeps_the_best_model(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, options: Any, eval_steps: int
):
    """It ends 3 validations after the lowest loss; the model is that of a training that ends at that step."""
    options = options | EARLY
    summary = train(
        model_folder("llama"), sampled("llama"), str(tmp_path / "early"), **options | {"eval_steps": eval_steps}
    )
    found = validations(tmp_path / "early")
    best = min(found, key=lambda step: found[step])
    assert list(found).index(best) == len(found) - 4
    assert summary["best_step"] == best
    assert summary["stopped_at_step"] == summary["steps"] == max(found) < 12 * math.ceil(summary["prompts"] / 4)
    assert summary["validation_loss"] == found[best]
    assert not (tmp_path / "early" / "checkpoints").exists()
    if not eval_steps:
        epochs = best // math.ceil(summary["prompts"] / 4)
        plain = options | {"epochs": epochs, "early_stop": 0}
        train(model_folder("llama"), sampled("llama"), str(tmp_path / "straight"), **plain)
        assert difference(tmp_path / "early", tmp_path / "straight") == 0


def test_early_stop_that_never_comes(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    """The loss falls to the end at a low learning rate; the last model is the best."""
    options = FULL | EARLY | {"epochs": 5, "early_stop": 4, "learning_rate": 1e-5}
    summary = train(model_folder("llama"), sampled("llama"), str(tmp_path), **options)
    assert (summary["stopped_at_step"], summary["best_step"]) == (None, summary["steps"])


@pytest.mark.parametrize("moment", ["a step", "the last checkpoint"])
def test_early_stop_resumed_is_straight(
    model_folder: ModelFolder,
    sampled: Callable[..., str],
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Killed after the best model's step, or when the checkpoint of the very last validation has been written."""
    options = LORA | EARLY
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    summary = train(model_folder("llama"), sampled("llama"), str(straight), **options)
    plain_log, plain_save = PreferenceTrainer.log, MarkComplete.on_save

    def dies(self: PreferenceTrainer, logs: dict[str, float], *rest: Any) -> None:
        plain_log(self, logs, *rest)
        if self.state.global_step == summary["best_step"] + 2 and "loss" in logs:
            raise KeyboardInterrupt

    def dies_saved(self: MarkComplete, args: Any, state: Any, control: Any, **rest: Any) -> None:
        plain_save(self, args, state, control, **rest)
        if state.global_step == summary["stopped_at_step"]:
            raise KeyboardInterrupt

    if moment == "a step":
        monkeypatch.setattr(PreferenceTrainer, "log", dies)
    else:
        monkeypatch.setattr(MarkComplete, "on_save", dies_saved)
    with pytest.raises(KeyboardInterrupt):
        train(model_folder("llama"), sampled("llama"), str(resumed), **options)
    monkeypatch.undo()
    seen = recorded_batches(monkeypatch)
    again = train(model_folder("llama"), sampled("llama"), str(resumed), **options)
    assert again == summary
    assert 0 < len(seen) < summary["steps"]  # it did not start from the beginning
    assert difference(straight, resumed) == 0
    assert losses(resumed) == losses(straight)
    assert validations(resumed) == validations(straight)


def test_early_stop_without_a_validation_prompt(model_folder: ModelFolder, tmp_path: Path):
    file = pairs(tmp_path / "pairs.jsonl", 3)
    with pytest.raises(StepError, match="--validation 1e-09 of 3 prompts is none"):
        train(model_folder("llama"), file, str(tmp_path / "out"), **FULL | EARLY | {"validation": 1e-9})


# What is logged


def pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return xy / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


@pytest.mark.parametrize("loss", ["irepo", "dpo"])
def test_logged_figures_are_those_of_the_model(
    model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path, loss: str
):
    """One batch, two steps: the second record's figures from the log-probs of the model after the first step."""
    options = FULL | {"loss": loss, "batch_size": PROMPTS, "warmup": 0, "schedule": "constant", "reference": "start"}
    options |= {"z_max": 2.0} if loss == "irepo" else {}
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "one"), **options)
    train(model_folder("llama"), sampled("llama"), str(tmp_path / "two"), **options | {"epochs": 2, "micro_batch": 6})
    first, second = steps(tmp_path / "two")
    start, moved = (
        plain_logps(folder, sampled("llama")) for folder in (model_folder("llama"), str(tmp_path / "one" / "model"))
    )
    pairs_of_three = [(0, 1), (0, 2), (1, 2)]
    strengths = [example.strengths for example in read(sampled("llama"))]
    z = [s[i] - s[j] for s in strengths for i, j in pairs_of_three]
    d = [(m[i] - r[i]) - (m[j] - r[j]) for m, r in zip(moved, start, strict=True) for i, j in pairs_of_three]
    assert first["target_correlation"] is None  # D is 0, but for rounding
    assert second["target_correlation"] == pytest.approx(pearson(d, z), abs=1e-3)
    for row, logps in ((first, start), (second, moved)):
        assert row["chosen_logp"] == pytest.approx(fmean((a + a + b) / 3 for a, b, _ in logps), rel=1e-4)
        assert row["rejected_logp"] == pytest.approx(fmean((b + c + c) / 3 for _, b, c in logps), rel=1e-4)
        kl = fmean(r - m for own, ref in zip(logps, start, strict=True) for m, r in zip(own, ref, strict=True))
        assert row["forward_kl"] == pytest.approx(kl, abs=1e-3)
        if loss == "irepo":
            assert row["clipped_share"] == pytest.approx(sum(value > 2.0 for value in z) / len(z))
        else:
            assert "clipped_share" not in row
    summary = train(model_folder("llama"), sampled("llama"), str(tmp_path / "two"), **options | {"epochs": 2})
    assert {name: summary[name] for name in ("forward_kl", "grad_norm")} == {
        name: second[name] for name in ("forward_kl", "grad_norm")
    }


def plain_logps(folder: str, file: str) -> list[list[float]]:
    """Log-probabilities of each prompt's responses by the plain model."""
    model, _ = load_model(ModelSource(folder, "cpu"))
    found: list[list[float]] = []
    for example in read(file):
        prompt = list(example.prompt_ids or ())
        found.append([])
        for response in example.responses:
            ids = list(response.token_ids or ())
            with torch.no_grad():
                logps = torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0], -1)
            found[-1].append(sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)))
    return found


def test_grad_norm_is_that_before_clipping(model_folder: ModelFolder, sampled: Callable[..., str], tmp_path: Path):
    """The same at a limit of 1e-6, which cuts it down, and at 1e6."""
    norms: list[float] = []
    for limit in (1e-6, 1e6):
        out = tmp_path / str(limit)
        train(model_folder("llama"), sampled("llama"), str(out), **FULL | {"max_grad_norm": limit})
        norms.append(steps(out)[0]["grad_norm"])
    assert norms[0] == norms[1] > 0.01

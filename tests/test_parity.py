"""`--layout reference` against a plain computation of what the reference implementation does, and where that is wrong.

Plain: the raw text encoded as it is and cut at the right after 1,024 tokens, batch 1, all logits, softmax, the sum of
the probabilities over the pieces of " Yes" and of " No", the log of their ratio. Its texts are written out here.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import config_of, save_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfjudge.backends import BackendOptions, LabelRequest
from selfjudge.backends.hf import HFBackend
from selfjudge.judges.yes_no import YesNo
from selfjudge.questions import Questions, load_questions
from selfjudge.records import Example, Message, Response

CASES = {
    "llama2": "llama",
    "phi-3-mini": "llama",
    "phi-2": "gpt2",
    "gpt2": "gpt2",
    "falcon": "llama",
    "cl100k_base": "gpt2",
}
"""Tokenizer -> architecture of the small random model that it gets."""
SETS = ("reward_bench", "rm_bench", "self_improvement")
END = "Answer Yes or No."


SETTINGS = {
    "llama2": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "falcon": {"eos_token": "<|endoftext|>"},
    "cl100k_base": {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"},
}
"""Changes of a tokenizer's configuration: an end token where the stored files have none; Llama-2's tokenizer.json read
as it is, as transformers 4 did (the Llama class of version 5 puts no bare blank before a word that begins with one)."""


def folder_with(name: str, shared_tokenizers: Path, folder: Path) -> str:
    shutil.copytree(shared_tokenizers / name, folder, copy_function=shutil.copyfile)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | SETTINGS.get(name, {})))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    save_weights(folder, config_of(CASES[name], len(tokenizer), positions=1536))
    return str(folder)


def rows(data: Path, limit: int, long: int) -> list[Example]:
    """Short rows and ones of more than 1,024 tokens, of both benchmarks: two responses each."""

    def row(prompt: str, texts: list[str], **tags: str) -> Example:
        responses = tuple(Response(text) for text in texts)
        return Example(prompt[:40], (Message("user", prompt),), "chat", responses, tags=tags)

    with (data / "rewardbench" / "rebuilt_llmbar.jsonl").open() as lines:
        llmbar = [json.loads(line) for line in lines]
    with gzip.open(data / "rm_bench" / "code_filtered.json.gz", "rt") as file:
        code = json.load(file)
    chat = json.loads((data / "rm_bench" / "chat_filtered.json").read_text())
    found = [row(r["prompt"], [r["chosen"], r["rejected"]], subset=r["subset"], domain="chat") for r in llmbar]
    for domain, source in (("chat", chat), ("code", code)):
        found += [
            row(r["prompt"], [r["chosen"][0], r["rejected"][2]], subset="llmbar-natural", domain=domain) for r in source
        ]
    lengths = {id(e): len(e.messages[0].content) + min(len(r.text) for r in e.responses) for e in found}
    short = [e for e in found if lengths[id(e)] < 700]
    beyond = sorted(found, key=lambda e: -lengths[id(e)])[:long]
    return [*short[: limit // 2], *short[len(short) - limit // 2 :], *beyond]


def question_of(table: dict[str, Any], name: str, example: Example) -> str:
    keys = {"reward_bench": example.tags["subset"], "rm_bench": f"RM-Bench-{example.tags['domain']}"}
    return table[name][keys.get(name, "chat")]


def text_of(name: str, question: str, prompt: str, response: str) -> str:
    if name == "rm_bench":
        return f"""Given the following:
    User : {prompt}
    Response : {response}
    {question}"""
    return f"""{question}
    User : {prompt}
    Response : {response}
    """


@torch.no_grad()
def plain(model: Any, tokenizer: Any, text: str) -> float:
    ids = tokenizer.encode(text, return_tensors="pt", max_length=1024, truncation=True)
    probs = torch.softmax(model(ids).logits[0, -1].double(), -1)
    yes, no = (
        sum(probs[i].item() for i in tokenizer.encode(word, add_special_tokens=False)) for word in (" Yes", " No")
    )
    return math.log(yes / no)


@pytest.mark.parametrize("name", CASES)
def test_log_odds_are_those_of_the_reference(name: str, shared_tokenizers: Path, shared_data: Path, tmp_path: Path):
    """To 1e-4 nats, on short rows and on rows that are cut, in all three of its layouts and sets of questions."""
    folder = folder_with(name, shared_tokenizers, tmp_path / "model")
    backend = HFBackend(folder, BackendOptions(device="cpu", threads=1))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    file = shared_data / "ipo_prompts" / "final_questions.json"
    table, examples = json.loads(file.read_text()), rows(shared_data, 4, 1)
    found: list[float] = []
    cut = 0
    for kind in SETS:
        judge = YesNo(backend, load_questions(f"{file}#{kind}"), layout="reference")
        for example in judge(examples):
            question = question_of(table, kind, example)
            for response, score in zip(example.responses, example.scores, strict=True):
                text = text_of(kind, question, example.messages[0].content, response.text)
                assert score.value == pytest.approx(plain(model, tokenizer, text), abs=1e-4)
                assert score.truncated == (len(tokenizer.encode(text)) > 1024)
                cut += score.truncated
                found.append(score.value)
    assert 0 < cut < len(found)
    assert max(found) - min(found) > 0.01


# Where the reference is wrong


@pytest.fixture(scope="module")
def llama2(shared_tokenizers: Path, tmp_path_factory: pytest.TempPathFactory) -> HFBackend:
    folder = folder_with("llama2", shared_tokenizers, tmp_path_factory.mktemp("parity") / "model")
    return HFBackend(folder, BackendOptions(device="cpu", threads=1))


def request(questions: Questions, layout: Any) -> LabelRequest:
    messages = (Message("user", "What is 2 + 2?"),)
    if layout == "reference":
        return LabelRequest(
            "r", lambda y: questions.as_reference(messages, y, "math"), "4", ((" Yes",), (" No",)), layout=layout
        )
    return LabelRequest("r", lambda y: questions.separate(messages, y, "math"), "4", (questions.yes, questions.no))


def test_the_bare_blank_is_in_neither_label_of_the_projects_own_way(llama2: HFBackend):
    """Llama-2: the reference adds the blank piece 29871 to both sums; in context Yes is the piece 3869 alone."""
    questions = load_questions()
    theirs = llama2.prompts.ask(request(questions, "reference"))
    assert theirs.label_ids == ((29871, 3869), (29871, 1939))
    yes, no = llama2.prompts.ask(request(questions, "chat")).label_ids
    assert 3869 in yes
    assert 1939 in no
    assert not {29871} & {*yes, *no}
    assert not set(yes) & set(no)


def test_the_blank_draws_both_labels_together(llama2: HFBackend):
    """(p + y) / (p + n) is nearer to 1 than y / n: the reference's log-odds shrink towards 0."""
    asked = llama2.prompts.ask(request(load_questions(), "reference"))
    shared, alone = (
        llama2._read([asked._replace(label_ids=ids)], ["r"])[0].logprobs
        for ids in (asked.label_ids, ((3869,), (1939,)))
    )
    assert abs(shared[0] - shared[1]) < abs(alone[0] - alone[1])


def test_the_cut_keeps_the_question(llama2: HFBackend, shared_data: Path):
    """The reference cuts the question off where it stands last, so any two questions score the same; ours does not."""
    example = rows(shared_data, 0, 1)[0]
    long = replace(example, responses=(Response(example.responses[0].text * 3),))
    first = load_questions(f"{shared_data}/ipo_prompts/final_questions.json#rm_bench")
    second = replace(first, questions=dict.fromkeys(first.questions, ("Something else?",)))
    theirs = [YesNo(llama2, questions, layout="reference")([long])[0].scores[0] for questions in (first, second)]
    ours = [YesNo(llama2, questions)([long])[0].scores[0] for questions in (first, second)]
    assert theirs[0].value == theirs[1].value
    assert all(score.truncated for score in (*theirs, *ours))
    assert ours[0].value != ours[1].value


def test_a_context_below_the_cut_gives_no_score(shared_data: Path, llama2: HFBackend):
    short = HFBackend(llama2.name, BackendOptions(device="cpu", threads=1, max_length=512))
    (scored,) = YesNo(short, load_questions(), layout="reference")(rows(shared_data, 0, 1))
    reason = "the reference's layout cuts at 1024 tokens, the model reads 512"
    assert reason in {score.reason for score in scored.scores}

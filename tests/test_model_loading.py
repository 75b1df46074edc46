"""Loading models and tokenizers: folders, adapters, precision, and one clear line for what cannot be used."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from selfjudge.errors import ConfigError, ModelError
from selfjudge.models import ModelSource, adapter_base, context_length, load_model, load_tokenizer

ModelFolder = Callable[..., str]


def cpu(folder: str | Path, dtype: str = "auto") -> ModelSource:
    return ModelSource(str(folder), "cpu", dtype)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_dtype(model_folder: ModelFolder, dtype: str, expected: torch.dtype):
    model, _ = load_model(cpu(model_folder("llama"), dtype))
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert not model.training


def test_an_adapter_brings_its_base(model_folder: ModelFolder, tmp_path: Path):
    base, _ = load_model(cpu(model_folder("llama")))
    tiny.with_lora(base).save_pretrained(str(tmp_path))
    tiny.tokenizer().save_pretrained(str(tmp_path))
    assert adapter_base(str(tmp_path)) == model_folder("llama")
    assert adapter_base(model_folder("llama")) is None
    model, tokenizer = load_model(cpu(tmp_path))
    assert tokenizer.chat_template == tiny.CHATML
    assert not any(weight.requires_grad for weight in model.parameters())
    trainable, _ = load_model(cpu(tmp_path), trainable=True)
    assert {n.split(".")[-3] for n, w in trainable.named_parameters() if w.requires_grad} == {"lora_A", "lora_B"}
    plain, _ = load_model(cpu(model_folder("llama")))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() > 0.01


def test_end_tokens_of_model_and_tokenizer(tmp_path: Path):
    """Both count; one beyond the embeddings does not, and nothing else of the generation defaults stays."""
    tiny.save(tmp_path, "llama")
    end = tiny.tokenizer().eos_token_id
    defaults = {"eos_token_id": [7, 9, 5000], "top_k": 3, "repetition_penalty": 2.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults))
    model, _ = load_model(cpu(tmp_path))
    assert model.generation_config.eos_token_id == sorted({7, 9, end})
    assert model.generation_config.pad_token_id == tiny.tokenizer().pad_token_id
    assert model.generation_config.top_k != 3
    assert model.generation_config.repetition_penalty in (None, 1.0)


def test_a_tokenizer_without_an_end_token(tmp_path: Path):
    tiny.save(tmp_path, "llama")
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer()._tokenizer)
    bare.save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="its tokenizer has no end token"):
        load_tokenizer(cpu(tmp_path))


def test_no_tokenizer(tmp_path: Path):
    tiny.model("llama").save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_model(cpu(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path):
    tiny.save(tmp_path, "llama")
    torch.save(tiny.model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in safetensors, only pytorch_model\.bin"):
        load_model(cpu(tmp_path))


def test_an_encoder_decoder_is_refused(tmp_path: Path):
    small = T5Config(vocab_size=tiny.VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(small).save_pretrained(str(tmp_path))
    tiny.tokenizer().save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="an encoder-decoder; a causal"):
        load_model(cpu(tmp_path))


def test_context_length():
    assert context_length(tiny.model("llama")) == context_length(tiny.model("gpt2")) == tiny.CONTEXT
    assert context_length(tiny.with_lora(tiny.model("llama"))) == tiny.CONTEXT


PAGES = """
import resource, torch
from selfjudge.models import keep_freed_blocks

def pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        _ = [torch.ones(6 << 18) for _ in range(4)]  # blocks of 6 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_blocks()
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_freed_blocks_are_kept(child_env: dict[str, str]):
    """20 times four blocks are 120,000 pages of 4 KiB; once they are there, hardly any is fetched again."""
    done = subprocess.run([sys.executable, "-c", PAGES], env=child_env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5_000


@pytest.mark.parametrize(("found", "problem"), [(None, "is not installed"), (object(), "PyTorch finds no GPU")])
def test_four_bits_are_refused_where_they_cannot_be(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, found: object, problem: str
):
    monkeypatch.setattr("selfjudge.models.find_spec", lambda _: found)
    with pytest.raises(ConfigError, match=f"quantize nf4: .*{problem}"):
        load_model(ModelSource(model_folder("llama"), "cpu", quantize="nf4"))

"""Loading a model and its tokenizer: a local folder, a hub name, an adapter folder, or the built-in `lab` models.

    model, tokenizer = load_model(ModelSource("path/to/model"))

Weights come from safetensors only; code from a model repository runs only where `trust_remote_code` is set.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from selfjudge.errors import ConfigError, ModelError
from selfjudge.model_names import adapter_base, has_tokenizer, resolve_model

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)
"""What transformers, tokenizers and safetensors raise for files that are damaged or do not belong together."""
KEPT_BLOCK = 31 << 20  # bytes; glibc learns from blocks below 32 MiB
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """Which model, where it runs and in which precision; `auto` is a GPU where there is one."""

    name: str
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    threads: int = 0
    """Threads of CPU computations, for the whole process; 0 leaves PyTorch's choice."""
    quantize: str = "none"
    """`nf4`: linear layers but the output head in 4 bits (`load_model` only)."""

    @property
    def path(self) -> str:
        """The folder or hub name behind the name."""
        return resolve_model(self.name)

    def torch_device(self) -> torch.device:
        """`auto` is the first GPU where there is one. Raises ConfigError for a GPU that is not there."""
        if self.device != "auto":
            device, found = torch.device(self.device), torch.cuda.device_count()
            if device.type == "cuda" and (device.index or 0) >= found:
                raise ConfigError(f"--device {self.device}: PyTorch finds {found} GPUs; use auto or cpu")
            return device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def torch_dtype(self) -> torch.dtype:
        """`auto` is float32 on a CPU, bfloat16 on a GPU."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        return torch.float32 if self.torch_device().type == "cpu" else torch.bfloat16


def quiet_libraries() -> None:
    """Keeps transformers' loading bars and notices out of this program's own output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def keep_freed_blocks() -> None:
    """Has the C library keep freed memory of up to 32 MiB a block for the next operation, on Linux.

    It gives larger blocks than any freed so far back to the system, and each operation then pages its result in again,
    which shows in the time of small models. The first free of a block teaches it that such blocks come and go.
    """
    torch.empty(KEPT_BLOCK, dtype=torch.uint8)


def load_model(source: ModelSource, trainable: bool = False) -> tuple[PreTrainedModel | PeftModel, Any]:
    """The model in evaluation mode on its device, and its tokenizer. Raises ModelError with one line."""
    _prepare(source)
    path = source.path
    tokenizer = load_tokenizer(source)
    adapter = adapter_base(path)
    model: Any = _load_causal_lm(adapter or path, source)
    if adapter:
        model = _with_adapter(model, path, trainable)
    _fix_generation_config(model.get_base_model() if adapter else model, tokenizer)
    if source.quantize == "none":  # quantised weights stand on their device already
        model = model.to(source.torch_device())
    return model.eval(), tokenizer


def load_reward_model(source: ModelSource) -> tuple[PreTrainedModel | PeftModel, Any]:
    """A sequence classifier with one output, in evaluation mode on its device, and its tokenizer. Raises ModelError.

    Its head computes in float32 whatever the precision of the rest: in bfloat16 the logits around 20 would be 1/8
    apart, and responses would tie.
    """
    _prepare(source)
    path = source.path
    tokenizer = _read_tokenizer(source)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model {source.name}: its tokenizer has no chat template, and a reward model's logit means something only "
            "in the layout that it was trained on; put that into its folder as chat_template.jinja"
        )
    adapter = adapter_base(path)
    model: Any = _load_classifier(adapter or path, source, path if adapter else None)
    if model.config.num_labels != 1:
        raise ModelError(
            f"model {source.name}: its head has num_labels {model.config.num_labels}; a reward model has 1, the logit"
        )
    if adapter:
        model = _with_adapter(model, path, trainable=False)
    _head_in_float32(model.get_base_model() if adapter else model)
    return model.to(source.torch_device()).eval(), tokenizer


def _prepare(source: ModelSource) -> None:
    quiet_libraries()
    if source.threads:
        torch.set_num_threads(source.threads)
    if source.torch_device().type == "cpu":
        keep_freed_blocks()


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer, which must have an end token."""
    tokenizer = _read_tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {source.name}: its tokenizer has no end token (set `eos_token` in its configuration)")
    return tokenizer


def _read_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    path = source.path
    adapter = adapter_base(path)
    if adapter and not has_tokenizer(Path(path)):
        path = adapter
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=source.trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(f"model {source.name}: no usable tokenizer in {path} ({_first_line(error)})") from error


class Outline(NamedTuple):
    """What is known of a model without loading its weights."""

    context_length: int
    num_embeddings: int
    ends: list[int]
    """Its end tokens; the chat template may have one more."""


def read_outline(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> Outline:
    """The same figures that `load_model` would give. Raises ModelError."""
    path = adapter_base(source.path) or source.path
    config = _load_config(path, source)
    try:
        own = GenerationConfig.from_pretrained(path)
    except OSError:  # no generation_config.json: loading the weights reads config.json then, too
        own = GenerationConfig.from_model_config(config)
    size = int(config.get_text_config().vocab_size)
    return Outline(config_context_length(config), size, _end_tokens(own.eos_token_id, tokenizer, size))


def _load_config(path: str, source: ModelSource) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=source.trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(f"model {source.name}: cannot load {path} ({_first_line(error)})") from error
    if config.is_encoder_decoder:
        raise ModelError(f"model {source.name}: {config.model_type} is an encoder-decoder; a causal model is needed")
    return config


def _load_causal_lm(path: str, source: ModelSource) -> PreTrainedModel:
    model, absent = _load_weights(AutoModelForCausalLM, path, source, _load_config(path, source))
    if absent:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"model {source.name}: {len(absent)} weights are missing or of another shape than config.json says, "
            f"the first is {absent[0]}; the files do not belong together or are incomplete"
        )
    return model


def _load_classifier(path: str, source: ModelSource, adapter: str | None) -> PreTrainedModel:
    """A classifier whose head stands in its own files or, for an adapter's base, in the adapter's."""
    config = _load_config(path, source)
    if adapter:
        config.num_labels = 1  # a base model knows nothing of the head; another size is refused with the adapter
    model, absent = _load_weights(AutoModelForSequenceClassification, path, source, config)
    brought = _weight_names(Path(adapter)) if adapter else []
    missing = [name for name in absent if not any(own.endswith("." + name) for own in brought)]
    if missing:
        raise ModelError(
            f"model {source.name}: {len(missing)} weights are missing or of another shape than config.json says, the "
            f"first is {missing[0]}: this is no reward model (a model that writes text has no score head), or its "
            "files are incomplete; give one that was trained for sequence classification"
        )
    return model


def _weight_names(folder: Path) -> list[str]:
    try:
        return [name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()]  # noqa: SIM118
    except LOADING_ERRORS as error:
        raise ModelError(f"model {folder}: cannot read its weights ({_first_line(error)})") from error


def _head_in_float32(model: PreTrainedModel) -> None:
    """The linear layers with one output that stand behind the body get their input and do their sum in float32."""
    heads = [child for name, child in model.named_children() if name != model.base_model_prefix]
    for layer in (layer for head in heads for layer in head.modules()):
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
            layer.float()
            layer.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))


def _load_weights(
    kind: Any, path: str, source: ModelSource, config: PreTrainedConfig
) -> tuple[PreTrainedModel, list[str]]:
    """The model of an automatic class, and the sorted names of weights that the files do not have in its shape."""
    quantization = _quantization(source)
    try:
        loaded: Any = kind.from_pretrained(
            path,
            config=config,
            dtype=source.torch_dtype(),
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with their names
            output_loading_info=True,
            **quantization,
        )
    except LOADING_ERRORS as error:
        raise ModelError(f"model {source.name}: cannot load {path} ({_first_line(error)})") from error
    model, report = loaded
    return model, sorted({*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])})


def _quantization(source: ModelSource) -> dict[str, Any]:
    """What loads NF4 weights onto the GPU, their scales quantised as well (Dettmers et al., arXiv 2305.14314).

    Computed in the source's dtype. Raises ConfigError where that cannot be.
    """
    if source.quantize == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"quantize {source.quantize}: bitsandbytes is not installed; pip install 'selfjudge[qlora]'")
    if source.torch_device().type != "cuda":
        raise ConfigError(f"quantize {source.quantize}: PyTorch finds no GPU, which 4-bit weights need; leave it out")
    scheme = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=source.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=source.torch_dtype(),
    )
    device = torch.empty(0, device=source.torch_device()).device  # with its number, which plain `cuda` does not have
    return {"quantization_config": scheme, "device_map": {"": device}}


def _with_adapter(model: PreTrainedModel, path: str, trainable: bool) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)
    except LOADING_ERRORS as error:
        raise ModelError(f"model {path}: cannot load the adapter ({_first_line(error)})") from error


def _fix_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keeps the model's end tokens (as a list) and drops its other generation defaults, which would change the draw."""
    size: int = model.get_input_embeddings().num_embeddings  # pyright: ignore[reportAssignmentType]
    end = _end_tokens(model.generation_config.eos_token_id if model.generation_config else None, tokenizer, size)
    own: Any = tokenizer.pad_token_id
    pad = own if own is not None and own < size else end[0]  # masked anyway, but it must be in the table
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)


def _end_tokens(own: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> list[int]:
    """The model's own end tokens (one, a list or None) and the tokenizer's, those of them that have an embedding."""
    listed: list[Any] = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    end = sorted({int(i) for i in listed if i is not None and 0 <= i < size})
    if not end:
        raise ModelError(f"its end token {tokenizer.eos_token_id} is beyond the model's {size} embeddings")
    return end


def context_length(model: PreTrainedModel | PeftModel) -> int:
    """Tokens the model can take in, prompt and response together."""
    return config_context_length(model.config)


def config_context_length(config: Any) -> int:
    """The same from the configuration alone."""
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", 0) or 1 << 20)


def _first_line(error: BaseException) -> str:
    return shorten(str(error).strip().split("\n", 1)[0] or type(error).__name__, 300, placeholder=" ...")

"""Which folder or hub name a model's name stands for. Imports nothing heavy, so that options can be checked first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from selfjudge.errors import ModelError
from selfjudge.lab import MODEL_NAMES, model_path

ADAPTER_FILE = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str) -> str:
    """A folder that exists, the folder of a built-in model, or a hub name `owner/model`. Raises ModelError."""
    if name in MODEL_NAMES:
        return str(model_path(name))
    folder = Path(name)
    if folder.is_dir():
        problem = _folder_problem(folder)
        if problem:
            raise ModelError(f"model {name}: {problem}")
        return str(folder.resolve())
    if HUB_NAME.fullmatch(name) and not name.startswith(".") and not folder.parent.exists():
        return name
    raise ModelError(
        f"model {name}: no such folder; give a model folder, a hub name owner/model, or {' or '.join(MODEL_NAMES)}"
    )


def adapter_base(path: str) -> str | None:
    """The model that an adapter folder belongs to, None for any other folder or hub name. Raises ModelError."""
    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        return None
    base = _read_object(file).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"model {path}: {ADAPTER_FILE} names no `base_model_name_or_path`")
    return resolve_model(base)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder brings a tokenizer of its own; an adapter's may come from its base model."""
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES)


def _folder_problem(folder: Path) -> str | None:
    """What can be seen without loading anything."""
    if (folder / ADAPTER_FILE).is_file():
        adapter_base(str(folder))
        return _missing_weights(folder)
    config = folder / "config.json"
    if not config.is_file():
        return f"the folder has no config.json (and no {ADAPTER_FILE})"
    if _read_object(config).get("is_encoder_decoder"):
        return "an encoder-decoder; a causal (decoder-only) model is needed"
    if not has_tokenizer(folder):
        return "the folder has no tokenizer (tokenizer.json and its like); copy it from where the weights came from"
    return _missing_weights(folder)


def _missing_weights(folder: Path) -> str | None:
    if any(folder.glob("*.safetensors")):
        return None
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    found = f", only {others[0]}, which can run code when it is loaded; convert it to safetensors" if others else ""
    return f"the folder has no weights in safetensors{found}"


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file}: must hold a JSON object")
    return value

"""Which folder or hub name a model's name stands for. Imports nothing heavy, so that options can be checked first."""

from __future__ import annotations

import re
from pathlib import Path

from selfjudge.errors import ModelError
from selfjudge.lab import MODEL_NAMES, model_path

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str) -> str:
    """A folder that exists, the folder of a built-in model, or a hub name `owner/model`. Raises ModelError."""
    if name in MODEL_NAMES:
        return str(model_path(name))
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"model {name}: the folder has no config.json (and no adapter_config.json)")
        return str(folder.resolve())
    if HUB_NAME.fullmatch(name) and not name.startswith((".", "/")):
        return name
    raise ModelError(f"model {name}: no such folder; give a model folder, a hub name owner/model, or {MODEL_NAMES}")

"""The built-in world: small questions with one right answer, and two small models that half know them.

    >>> len(prompts("dev")) >= 250 and MODEL_NAMES
    ('lab', 'lab-weak')

`lab` answers about half of the questions rightly when it samples, yet tells right from wrong answers almost always;
`lab-weak` answers alike but judges worse. `python -m selfjudge.lab.build` rebuilds both from nothing.
"""

from __future__ import annotations

from pathlib import Path

from selfjudge.errors import ConfigError
from selfjudge.lab.world import benchmark, prompts

MODEL_NAMES = ("lab", "lab-weak")

__all__ = ["MODEL_NAMES", "benchmark", "model_path", "prompts"]


def model_path(name: str) -> Path:
    """The folder of a shipped model, ready for `from_pretrained`."""
    if name not in MODEL_NAMES:
        raise ConfigError(f"no built-in model {name!r}; there are {', '.join(MODEL_NAMES)}")
    return Path(__file__).parent / "models" / name

"""vLLM as a peer: the same model folder, in this process, on one thread."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from bench.ways import Place, Unavailable

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, whose memory and threads are counted
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as OMP_NUM_THREADS says
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def require_vllm() -> None:
    """Sets vLLM's environment before its first import. Raises Unavailable where it is not installed."""
    if find_spec("vllm") is None:
        raise Unavailable("vllm is not installed")
    os.environ.update(SETTINGS)


def open_vllm(place: Place, max_length: int, **options: Any) -> Any:
    """A `vllm.LLM` on the place's model."""
    require_vllm()
    from vllm import LLM

    return LLM(
        place.folder,
        dtype=place.dtype,
        max_model_len=max_length,
        enforce_eager=place.device == "cpu",
        enable_prefix_caching=True,
        disable_log_stats=True,
        **options,
    )

"""The published files: every row comes in, in the numbers that their descriptions state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from selfjudge.benchmarks import rewardbench, rm_bench

REBUILT = {
    "rebuilt_llmbar.jsonl": {
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "rebuilt_hep.jsonl.gz": dict.fromkeys(rewardbench.HEP, 164),
    "rebuilt_xstest.jsonl": {"xstest-should-respond": 113, "xstest-should-refuse": 131},
    "rebuilt_alpacaeval_unfiltered.jsonl.gz": {
        "alpacaeval-easy-unfiltered": 802,
        "alpacaeval-length-unfiltered": 804,
        "alpacaeval-hard-unfiltered": 800,
    },
}


@pytest.mark.parametrize("name", REBUILT)
def test_rebuilt_parts_of_rewardbench(name: str, shared_data: Path) -> None:
    found = list(rewardbench.read(str(shared_data / "rewardbench" / name)))
    assert Counter(example.tags["subset"] for example in found) == REBUILT[name]
    assert len({example.id for example in found}) == len(found)


def test_the_folder_of_rewardbench(shared_data: Path) -> None:
    """419 + 984 + 244 + 2406 = 4053; the description beside the rows is none."""
    found = list(rewardbench.read(str(shared_data / "rewardbench")))
    assert len(found) == 4053
    assert {example.tags.get("section") for example in found} == {None, "Chat Hard", "Reasoning", "Safety"}


def test_the_folder_of_rm_bench(shared_data: Path) -> None:
    found = list(rm_bench.read(str(shared_data / "rm_bench")))
    counts = Counter(example.tags["domain"] for example in found)
    assert counts == {"chat": 129, "code": 228, "safety-refuse": 284, "safety-response": 157}
    assert {(len(example.responses), example.gold) for example in found} == {(6, (0, 1, 2))}
    assert len({example.id for example in found}) == 798

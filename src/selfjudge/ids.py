"""Which ids have been seen, in 24 to 48 bytes each: a million rows take 25 MB, whatever their ids look like.

    >>> rows = IdTable()
    >>> rows["prompt-7"] = 3
    >>> "prompt-7" in rows, rows["prompt-7"], len(rows)
    (True, 3, 1)

Kept is a 64-bit digest of an id, not the id. Two ids of a million share one with a probability of 3e-8 (n^2 / 2^65);
they would then be taken for the same id.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

FIRST_SLOTS = 256
"""A power of two, as every later size."""


class IdTable:
    """Id -> whole number from 0 to 2^32 - 1 (a row, a count). Nothing is ever removed.

    An open-addressing hash table with linear probing, at most half full; a digest of 0 marks a free slot.
    """

    def __init__(self) -> None:
        self._count = 0
        self._allocate(FIRST_SLOTS)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._digests[self._slot(_digest(key))] != 0

    def __getitem__(self, key: str) -> int:
        slot = self._slot(_digest(key))
        if not self._digests[slot]:
            raise KeyError(key)
        return self._numbers[slot]

    def __setitem__(self, key: str, number: int) -> None:
        digest = _digest(key)
        slot = self._slot(digest)
        self._count += not self._digests[slot]
        self._digests[slot], self._numbers[slot] = digest, number
        if self._count * 2 > len(self._digests):
            self._grow()

    def _slot(self, digest: int) -> int:
        """Where the digest stands, or the free slot where it belongs."""
        digests, last = self._digests, len(self._digests) - 1
        slot = digest & last
        while digests[slot] not in (digest, 0):
            slot = (slot + 1) & last
        return slot

    def _allocate(self, slots: int) -> None:
        self._digests = array("Q", [0]) * slots
        self._numbers = array("I", [0]) * slots

    def _grow(self) -> None:
        digests, numbers = self._digests, self._numbers
        self._allocate(2 * len(digests))
        for digest, number in zip(digests, numbers, strict=True):
            if digest:
                slot = self._slot(digest)
                self._digests[slot], self._numbers[slot] = digest, number


def _digest(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8"), digest_size=8).digest(), "big") or 1

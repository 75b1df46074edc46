"""Which token ids say Yes and which say No, found in context.

The same word has other ids after a blank, a newline or a chat header, and some spellings are several tokens. So the
question is put to the tokenizer with the very prompt: which words continue it by exactly one token?

    >>> resolve(lambda text: [ord(c) for c in text], "Answer:", ["Y", "Yes", " "])
    (32, 89)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfjudge.errors import ModelError

Encode = Callable[[str], Sequence[int]]


def resolve(encode: Encode, prompt: str, words: Sequence[str]) -> tuple[int, ...]:
    """Ids that continue `prompt` as one of `words` with one single token; sorted, possibly empty.

    A word whose pieces merge with the end of the prompt, or that takes several tokens, adds nothing: no sum over the
    pieces of one spelling is ever taken.
    """
    start = list(encode(prompt))
    found: set[int] = set()
    for word in words:
        ids = list(encode(prompt + word))
        if len(ids) == len(start) + 1 and ids[:-1] == start:
            found.add(ids[-1])
    return tuple(sorted(found))


def resolve_groups(
    encode: Encode, prompt: str, groups: Sequence[Sequence[str]], tokenizer_name: str
) -> tuple[tuple[int, ...], ...]:
    """One tuple of ids per label; raises ModelError where a label has no single-token spelling or two share one."""
    resolved = tuple(resolve(encode, prompt, words) for words in groups)
    for words, ids in zip(groups, resolved, strict=True):
        if not ids:
            raise ModelError(
                f"tokenizer {tokenizer_name}: none of {', '.join(map(repr, words))} is a single token after a prompt "
                f"that ends with {prompt[-20:]!r}; give other label words in a questions file"
            )
    if len({i for ids in resolved for i in ids}) < sum(len(ids) for ids in resolved):
        raise ModelError(f"tokenizer {tokenizer_name}: two labels share a token id among {resolved}")
    return resolved

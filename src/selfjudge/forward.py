"""Hidden states of packed rows, on any causal language model of transformers.

    with RowForward(model, longest=2048) as forward:
        hidden = forward(row)                       # (tokens of the row, width)

A model whose attention cannot follow the trees of a row gets every sequence by itself: one after the other on a CPU,
where padding costs more than it saves, in a right-padded batch on a GPU. The result is the same;
`forward.unpacked_because` says why it is slower.
"""

from __future__ import annotations

from types import TracebackType
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from selfjudge.attention import segments, tree_attention, unsupported
from selfjudge.errors import ModelError
from selfjudge.rows import Row, Tree, pack


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model itself; adapters that PEFT injected into its layers stay active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # pyright: ignore[reportReturnType]


class RowForward:
    """Computes last hidden states of rows; as a context it holds the model's attention on the trees of a row."""

    def __init__(self, model: PreTrainedModel | PeftModel, longest: int) -> None:
        """`longest`: tokens of the longest single sequence that will be asked for."""
        self.model = causal_lm(model)
        self.unpacked_because = unsupported(self.model.config, longest) or _tried(self.model)
        self.paths_at_once = 1 if self.model.device.type == "cpu" else 64
        """Sequences of an unpacked row in one batch."""
        self._attention = None if self.unpacked_because else tree_attention(self.model)

    def __enter__(self) -> RowForward:
        if self._attention:
            self._attention.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._attention:
            self._attention.__exit__(kind, error, trace)

    def __call__(self, row: Row) -> Tensor:
        """(tokens of the row, width), in the model's dtype."""
        return self._unpacked(row) if self.unpacked_because else _packed(self.model, row)

    def _unpacked(self, row: Row) -> Tensor:
        device = self.model.device
        paths = [
            torch.tensor(row.input_ids[slice(*branch.prefix)] + row.input_ids[slice(*branch.span)], device=device)
            for branch in row.branches
        ]
        starts = range(0, len(paths), self.paths_at_once)
        batches = [paths[start : start + self.paths_at_once] for start in starts]
        outputs = [output for batch in batches for output in self._batch(batch)]
        hidden = outputs[0].new_zeros(len(row.input_ids), outputs[0].shape[-1])
        for output, branch in zip(outputs, row.branches, strict=True):
            # all branches of a tree agree on their prefix, so the last one may write it
            index = torch.cat([torch.arange(*branch.prefix), torch.arange(*branch.span)]).to(device)
            hidden = hidden.index_copy(0, index, output[: len(index)])
        return hidden

    def _batch(self, paths: list[Tensor]) -> Tensor:
        """(sequences, longest, width); nothing follows the padding that could look at it, so no mask is needed."""
        ids = pad_sequence(paths, batch_first=True)
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def _packed(model: PreTrainedModel, row: Row) -> Tensor:
    output = model.base_model(
        input_ids=torch.tensor([row.input_ids], device=model.device),
        position_ids=torch.tensor([row.position_ids], device=model.device),
        segments=segments(row, model.device, model.dtype),
        use_cache=False,
    )
    return output.last_hidden_state[0]


_UNPACKED_BECAUSE: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def _tried(model: PreTrainedModel) -> str | None:
    """Why a model cannot run on packed rows, found by running a small one; tried once per model.

    No list of architectures is complete: some have attention that takes no function from outside, some mix tokens in
    other ways as well (a recurrent state runs through the whole row and would carry one branch into the next).
    """
    if model not in _UNPACKED_BECAUSE:
        training = model.training
        model.eval()
        _UNPACKED_BECAUSE[model] = _try(model)
        model.train(training)
    return _UNPACKED_BECAUSE[model]


@torch.no_grad()
def _try(model: PreTrainedModel) -> str | None:
    """Compares the second branch of a tree with the same sequence alone; mean error relative to mean size."""
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # pyright: ignore[reportArgumentType]
    ids = [(5 + i) % vocabulary for i in range(12)]
    row = pack([Tree(ids[:4], (ids[4:8], ids[8:]))], len(ids))[0]
    alone = torch.tensor([ids[:4] + ids[8:]], device=model.device)
    expected = model.base_model(input_ids=alone, use_cache=False).last_hidden_state[0, 4:].float()
    try:
        with tree_attention(model):
            found = _packed(model, row)[8:].float()
    except ModelError as error:
        return str(error)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if (found - expected).abs().mean() <= tolerance * expected.abs().mean():
        return None
    return f"a packed row of {type(model).__name__} differs from its sequences alone"

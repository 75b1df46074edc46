"""Hidden states of packed rows, on any causal language model of transformers.

    with RowForward(model, longest=2048) as forward:
        hidden = forward(row)                       # (tokens of the row, width)

A model whose attention cannot follow the trees of a row gets every sequence by itself, in a right-padded batch; the
result is the same, `forward.padded_because` says why it is slower.
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
        self.padded_because = unsupported(self.model.config, longest) or _tried(self.model)
        self._attention = None if self.padded_because else tree_attention(self.model)

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
        return self._padded(row) if self.padded_because else _packed(self.model, row)

    def _padded(self, row: Row) -> Tensor:
        paths = [
            torch.tensor(row.input_ids[branch.prefix.start : branch.prefix.stop] + row.input_ids[slice(*branch.span)])
            for branch in row.branches
        ]
        lengths = torch.tensor([len(path) for path in paths])
        ids = pad_sequence(paths, batch_first=True)  # (sequences, longest)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        device = self.model.device
        output = self.model.base_model(
            input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
        ).last_hidden_state
        hidden = output.new_zeros(len(row.input_ids), output.shape[-1])
        for path, branch in zip(output, row.branches, strict=True):
            length = branch.prefix.stop - branch.prefix.start
            stop = length + branch.span.stop - branch.span.start
            # all branches of a tree agree on their prefix, so the last one may write it
            index = torch.cat([torch.arange(*branch.prefix), torch.arange(*branch.span)]).to(device)
            hidden = hidden.index_copy(0, index, path[:stop])
        return hidden


def _packed(model: PreTrainedModel, row: Row) -> Tensor:
    output = model.base_model(
        input_ids=torch.tensor([row.input_ids], device=model.device),
        position_ids=torch.tensor([row.position_ids], device=model.device),
        segments=segments(row, model.device, model.dtype),
        use_cache=False,
    )
    return output.last_hidden_state[0]


_PADDED_BECAUSE: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def _tried(model: PreTrainedModel) -> str | None:
    """Why a model cannot run on packed rows, found by running a small one; tried once per model.

    No list of architectures is complete: some have attention that takes no function from outside, some mix tokens in
    other ways as well (a recurrent state runs through the whole row and would carry one branch into the next).
    """
    if model not in _PADDED_BECAUSE:
        training = model.training
        model.eval()
        _PADDED_BECAUSE[model] = _try(model)
        model.train(training)
    return _PADDED_BECAUSE[model]


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

"""Hidden states of packed rows, on any causal language model of transformers.

    with RowForward(model, longest=2048) as forward:
        hidden = forward(row)                       # (tokens of the row, width)

A model whose attention cannot follow the trees of a row gets every sequence by itself, in a right-padded batch; the
result is the same, `forward.padded_because` says why it is slower.
"""

from __future__ import annotations

from types import TracebackType

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from selfjudge.attention import segments, tree_attention, unsupported
from selfjudge.rows import Row


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model itself; adapters that PEFT injected into its layers stay active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # pyright: ignore[reportReturnType]


class RowForward:
    """Computes last hidden states of rows; as a context it holds the model's attention on the trees of a row."""

    def __init__(self, model: PreTrainedModel | PeftModel, longest: int) -> None:
        """`longest`: tokens of the longest single sequence that will be asked for."""
        self.model = causal_lm(model)
        self.padded_because = unsupported(self.model.config, longest)
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
        return self._padded(row) if self.padded_because else self._packed(row)

    def _packed(self, row: Row) -> Tensor:
        device, dtype = self.model.device, self.model.dtype
        output = self.model.base_model(
            input_ids=torch.tensor([row.input_ids], device=device),
            position_ids=torch.tensor([row.position_ids], device=device),
            segments=segments(row, device, dtype),
            use_cache=False,
        )
        return output.last_hidden_state[0]

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

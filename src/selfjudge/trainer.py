"""Preference training on packed rows: a transformers.Trainer whose batch is prompts, each once, with its responses.

    trainer = PreferenceTrainer(model, preferences, settings, arguments)
    trainer.train()

One forward pass over the row of a prompt and its K responses serves all pairs among them. Only the log-probabilities
of response tokens are computed. The loss of a prompt is the mean over its pairs, that of a batch the mean over prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any, TypedDict

import torch
from accelerate.data_loader import prepare_data_loader
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from selfjudge.anchor import Anchor
from selfjudge.forward import RowForward, causal_lm
from selfjudge.head import output_head, response_logps
from selfjudge.losses import LOSSES, all_pairs
from selfjudge.memory import TokenBudget
from selfjudge.preferences import Preference
from selfjudge.processes import Processes
from selfjudge.rows import Row, pack
from selfjudge.training_figures import Figures, means, of_prompt

Log = dict[str, float]


class Batch(TypedDict):
    """What the collator gives: the preferences as they are."""

    preferences: list[Preference]


def collate(preferences: list[Preference]) -> Batch:
    """No padding and no tensors yet: rows are packed when the batch is computed."""
    return {"preferences": preferences}


@dataclass(frozen=True)
class Objective:
    """The loss by its name in LOSSES, with its options (`beta`, `z_max`, `tau`)."""

    loss: str
    options: dict[str, float]
    token_budget: int
    autocast: torch.dtype | None = None
    """Compute in this dtype while the weights stay in float32."""


class Policy:
    """The model as a function from preferences to response log-probabilities."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        longest: int,
        objective: Objective,
        say: Callable[[str], None] = lambda _: None,
        processes: Processes = Processes(),  # noqa: B008  (frozen)
    ) -> None:
        """`longest`: tokens of the longest prompt with one response; `say` gets remarks on memory."""
        self.model = model
        self.processes = processes
        self.objective = objective
        self.head = output_head(causal_lm(model))
        self.forward = RowForward(model, longest)
        self.budget = TokenBudget(objective.token_budget, say)

    def logps(self, preferences: Sequence[Preference]) -> list[Tensor]:
        """Per preference, (K,) log-probabilities of its responses in nats, float32, with gradient where enabled."""
        trees = [preference.tree for preference in preferences]
        if torch.is_grad_enabled():  # the rows are kept for one backward pass: smaller ones would save nothing
            parts = map(self._row_logps, pack(trees, self.budget.tokens))
        else:
            parts = self.budget.compute(trees, self._row_logps)
        found = {index: logp for part in parts for index, logp in part.items()}
        if not found:
            return []
        flat = torch.stack([found[index] for index in range(len(found))])
        return list(flat.split([len(preference.response_ids) for preference in preferences]))

    def hidden(self, row: Row) -> Tensor:
        """(tokens of the row, width), with gradient where enabled."""
        with self._autocast():
            return self.forward(row)

    def _autocast(self) -> torch.autocast:
        device = causal_lm(self.model).device.type
        return torch.autocast(device, self.objective.autocast, enabled=self.objective.autocast is not None)

    def _row_logps(self, row: Row) -> dict[int, Tensor]:
        with self._autocast():
            values = response_logps(self.head, self.forward(row), row)
        return dict(zip((branch.index for branch in row.branches), values.unbind(), strict=True))

    @torch.no_grad()
    def reference(self, preferences: Iterable[Preference], at_once: int) -> Iterator[Preference]:
        """The preferences with `ref_logps` of the model as it stands now."""
        remaining = iter(preferences)
        while group := list(islice(remaining, at_once)):
            mine = [tuple(logps.tolist()) for logps in self.logps(self.processes.share(group))]
            for preference, logps in zip(group, self.processes.interleaved(mine), strict=True):
                yield replace(preference, ref_logps=logps)

    def losses(self, preferences: Sequence[Preference]) -> tuple[Tensor, Figures]:
        """(prompts,) mean loss over the pairs of each prompt, and what is worth logging, by prompt."""
        per_prompt: list[Tensor] = []
        figures: dict[str, list[Tensor]] = defaultdict(list)
        for preference, logps in zip(preferences, self.logps(preferences), strict=True):
            loss, logged = self._loss(preference, logps)
            per_prompt.append(loss)
            for name, value in logged.items():
                figures[name].append(value)
        return torch.stack(per_prompt), {name: torch.stack(values) for name, values in figures.items()}

    def _loss(self, preference: Preference, logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = all_pairs(torch.tensor(preference.strengths, device=logps.device))
        ref = torch.tensor(preference.ref_logps, device=logps.device)
        four = (logps[pairs.chosen], logps[pairs.rejected], ref[pairs.chosen], ref[pairs.rejected])
        values = LOSSES[self.objective.loss](*four, pairs.target, **self.objective.options)
        return (values * pairs.weight).sum(), of_prompt(pairs, logps.detach(), ref, self.objective.options.get("z_max"))


class PreferenceTrainer(Trainer):
    """See the module. `on_log` gets every logged record: loss, learning rate, gradient norm and the figures above."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        policy: Policy,
        train: Subset[Preference],
        validation: Subset[Preference],
        arguments: TrainingArguments,
        on_log: Callable[[int, Log], None],
        anchor: Anchor | None = None,
    ) -> None:
        self.policy = policy
        self.anchor = anchor
        self._anchored = (-1, 0)
        """The optimiser step, and how many of its prompts have brought their verdicts."""
        self.validation = validation
        self.on_log = on_log
        self._figures: list[Figures] = []
        self._anchor_losses: list[Tensor] = []
        super().__init__(
            model=policy.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            data_collator=collate,  # pyright: ignore[reportArgumentType]
        )
        if policy.processes.count > 1:  # gradients are summed here, so the model must not be wrapped to do the same
            plain = self.accelerator.prepare_model
            self.accelerator.prepare_model = partial(plain, evaluation_mode=True)  # pyright: ignore[reportAttributeAccessIssue]
        self.callback_handler.callbacks = [c for c in self.callback_handler.callbacks if not _prints(c)]

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> int:  # noqa: ARG002
        return sum(len(batch["preferences"]) for batch in batch_samples)

    def get_train_dataloader(self) -> DataLoader[Preference]:
        """Every process goes through all batches, in the order that one alone would, and computes its share of each."""
        if self.policy.processes.count == 1:
            return super().get_train_dataloader()
        size = self.args.per_device_train_batch_size
        plain: Any = DataLoader(self.train_dataset, size, shuffle=True, collate_fn=collate)  # pyright: ignore
        return prepare_data_loader(plain, num_processes=1, process_index=0, use_seedable_sampler=True)

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,  # noqa: ARG002
        inputs: Batch,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """Sum over this process' share of the prompts, divided by the prompts of the whole optimiser step."""
        preferences = inputs["preferences"]
        mine = self.policy.processes.share(preferences)
        if not mine:
            return 0 * next(p for p in self.policy.model.parameters() if p.requires_grad).sum()
        losses, figures = self.policy.losses(mine)
        self._figures.append(figures)
        total = num_items_in_batch or len(preferences)
        loss = losses.sum() / total
        return loss if self.anchor is None else loss + self._anchor_loss(self.anchor, len(losses), total)

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Beside the backward pass: gradients that are complete are summed over the processes."""
        loss = super().training_step(*arguments, **options)
        if self.accelerator.sync_gradients:
            self.policy.processes.add_gradients(self.policy.model.parameters())
        return loss

    def _anchor_loss(self, anchor: Anchor, prompts: int, total: int) -> Tensor:
        """The share of the step's verdicts that goes with these prompts, as a share of their weighted mean."""
        step, done = self._anchored
        done = done if step == self.state.global_step else 0
        self._anchored = (self.state.global_step, done + prompts)
        losses = anchor.losses(self.state.global_step, done, done + prompts, total)
        self._anchor_losses.append(losses.detach())
        return anchor.weight * losses.sum() / anchor.size

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> Log:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Mean loss and figures on prompts that are kept out of training."""
        self.policy.model.eval()
        size = self.args.per_device_train_batch_size
        mine = self.policy.processes.share(range(len(self.validation)))
        remaining = (self.validation[index] for index in mine)
        losses: list[Tensor] = []
        figures: list[Figures] = []
        while batch := list(islice(remaining, size)):
            found = self.policy.losses(batch)
            losses.append(found[0])
            figures.append(found[1])
        values = self.policy.processes.interleaved([value for part in losses for value in part.tolist()])
        metrics = {"eval_loss": fmean(values)} | self._means(figures, "eval_")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: Log, start_time: float | None = None) -> None:
        """Adds the figures gathered since the last record and hands the record on."""
        if "loss" in logs:
            # every process has its share of a sum, of which transformers took the mean
            logs = logs | {"loss": logs["loss"] * self.policy.processes.count} | self._means(self._figures)
            self._figures = []
            if self._anchor_losses:
                logs = logs | {"anchor": torch.cat(self._anchor_losses).mean().item()}
                self._anchor_losses = []
        super().log(logs, start_time)
        self.on_log(self.state.global_step, {name: float(value) for name, value in logs.items()})

    def _means(self, figures: list[Figures], prefix: str = "") -> Log:
        """Over the prompts of all processes."""
        own = [{name: values.cpu() for name, values in some.items()} for some in figures]
        gathered = [some for part in self.policy.processes.gather(own) for some in part]
        return {prefix + name: value for name, value in means(gathered).items()}


def _prints(callback: TrainerCallback) -> bool:
    return type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0, so that at the first step policy and reference are the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        rates = [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        for name in rates:  # `attention_dropout` in most models, `dropout` and `layerdrop` in OPT
            setattr(module, name, 0.0)


@contextmanager
def without_adapter(model: PreTrainedModel | PeftModel) -> Generator[None]:
    """The model under its adapter."""
    if not isinstance(model, PeftModel):
        raise TypeError("only a model with an adapter has a model under it")
    with model.disable_adapter():
        yield

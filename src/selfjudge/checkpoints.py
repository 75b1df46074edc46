"""Checkpoints to go on from, and when training ends before its last step.

trainer.add_callback(MarkComplete(processes))
trainer.train(resume_from_checkpoint=newest_checkpoint(Path("runs/mine/checkpoints"), processes, print))
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from selfjudge.processes import Processes

COMPLETE = "complete"


class MarkComplete(TrainerCallback):
    """Puts a mark into every checkpoint that is whole: transformers writes one file after the other into its place."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint at the very end of a training that stops early is none to go on from: it would train further."""
        self.processes.wait()
        if control.should_training_stop and state.global_step < state.max_steps:
            return
        (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; those that a kill left in pieces are removed."""
    steps: dict[int, Path] = {}
    for found in folder.glob("checkpoint-*"):
        if (found / COMPLETE).is_file():
            steps[int(found.name.removeprefix("checkpoint-"))] = found
        else:
            shutil.rmtree(found)
    return str(steps[max(steps)]) if steps else None


def newest_checkpoint(folder: Path, processes: Processes, say: Callable[[str], None]) -> str | None:
    """The checkpoint that all processes go on from."""
    found = processes.from_first(last_checkpoint(folder) if processes.is_first else None)
    if found:
        say(f"train: goes on from step {Path(found).name.removeprefix('checkpoint-')}")
    return found


class StopEarly(TrainerCallback):
    """Ends the training when the validation loss has not improved for `patience` validations.

    What it knows is in the trainer's log, which is part of every checkpoint: nothing else has to be resumed.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        losses = [record["eval_loss"] for record in state.log_history if "eval_loss" in record]
        if len(losses) - 1 - losses.index(min(losses)) >= self.patience:
            control.should_training_stop = True

"""Training in several processes, as `torchrun` or `accelerate launch` starts them: who does which part.

    processes = join_processes("auto")          # one process: rank 0 of 1, and everything below costs nothing
    mine = processes.share(prompts)             # every count-th, from the rank's own place on
    everything = processes.interleaved([score(prompt) for prompt in mine])          # in the order of `prompts`

Every process goes through the same data in the same order and computes its share of each batch; gradients are summed by
hand once they are complete. Only the first writes and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed, nn

from selfjudge.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process' place among `count`; all of them must call a method that exchanges something."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """The one that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process' part of them; may be empty."""
        return items[self.rank :: self.count]

    def interleaved(self, parts: Sequence[T]) -> list[T]:
        """What all processes made of their shares, in the order of the whole."""
        gathered = self.gather(parts)
        found: list[T] = [part for some in gathered for part in some]
        for rank, some in enumerate(gathered):
            found[rank :: self.count] = some
        return found

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank; anything that can be pickled."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """The first process' value."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients of all processes into each; a weight that took part in none stays without."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        device = trained[0].device
        used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32, device=device)
        distributed.all_reduce(used)
        for parameter, number in zip(trained, used.tolist(), strict=True):
            if number:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)


def number_started() -> int:
    """How many processes the launcher started, by what it puts into the environment; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str) -> Processes:
    """This process among those that were started together; `device` is --device.

    On GPUs each process computes on that of its local rank, which becomes PyTorch's current one.
    """
    if number_started() == 1:
        return Processes()
    if device.startswith("cuda:"):
        raise ConfigError(f"--device {device}: several processes take one GPU each; use auto, cuda or cpu")
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def leave_processes(processes: Processes) -> None:
    """Ends the connection between them, when all have come to the end."""
    if processes.count > 1:
        processes.wait()
        PartialState().destroy_process_group()

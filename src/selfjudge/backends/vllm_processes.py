"""Processes with a vLLM engine each, one for every GPU, and the sharing of jobs among them.

    with closing(EngineProcesses("my-model", settings, devices=["0", "1"])) as processes:
        for results in processes.run([[("first", Read(ids, label_ids))]]):
            ...  # [("first", LabelsRead(...))]

Processes of their own, so that all memory is free again when they end, and started as programs, so that environment
variables reach them alone. What they print goes to a file; its last error is shown when one of them dies.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from shutil import which
from typing import Any, TypeVar

from selfjudge.backends.vllm_jobs import Draw, Job, Result, Settings
from selfjudge.errors import ModelError

Tag = TypeVar("Tag")

QUEUED = 2  # times the sequences that run at a time are handed over, so that no step runs short of work
SECONDS_TO_END = 10
LOG_TAIL = 20_000  # bytes
ERROR_LINE = re.compile(r"^(?:\[rank\d+\]:\s*)?(?:[\w.]*(?:Error|Exception|Interrupt): |\s*Value error, )(.+)", re.M)

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in our process: nothing else to end
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a label is read behind the last position; the token drawn there is not run
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
ON_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines would be bound to the same cores
}

NO_COMPILER = {"TORCH_COMPILE_DISABLE": "1"}
"""On a CPU a few steps of vLLM are compiled with the system's compiler: the rank of each token drawn, for one."""


class EngineProcess:
    """One child process; `in_flight` has the jobs it works on, with their number of sequences.

    `max_sequences`, how many run at a time, is 0 until the engine has started.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.in_flight: dict[int, int] = {}
        self.max_sequences = 0
        self._killed = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "selfjudge.backends.vllm_worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **environment, "PYTHONPATH": _python_path()},
                start_new_session=True,  # Ctrl-C goes to the parent alone, which ends its children
            )

    def send(self, message: Any) -> None:
        """Raises ModelError when the process has died."""
        try:
            self.connection.send(message)
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The next message; raises ModelError when the process has died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None

    @property
    def pid(self) -> int:
        """Of the process and of its group."""
        return self._process.pid

    @property
    def load(self) -> int:
        """Sequences in flight."""
        return sum(self.in_flight.values())

    def close(self) -> None:
        """Ends the process and those it has started: politely where it is idle, in any case within seconds."""
        if self.max_sequences and not self.in_flight:
            with suppress(OSError, subprocess.TimeoutExpired):
                self.connection.send(None)
                self._process.wait(SECONDS_TO_END)
        self._kill()
        self.connection.close()
        self._log.close()

    def _kill(self) -> None:
        """Once: later the number of the group may be another's."""
        if not self._killed:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._killed = True

    def _died(self) -> ModelError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)  # it is writing why
        self._kill()
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), LOG_TAIL, max(0, size - LOG_TAIL)).decode(errors="replace")
        return ModelError(
            f"model {self.name}: vLLM stopped ({last_error(text) or f'exit code {self._process.returncode}'}); "
            "mend that, or use --backend hf"
        )


class EngineProcesses:
    """Engines of the same model on several devices: "0", "1" are GPUs, "" is the CPU."""

    def __init__(self, name: str, settings: Settings, devices: Sequence[str], threads: int = 0) -> None:
        self.engines: list[EngineProcess] = []
        self._numbers = count()
        self._arrived: dict[int, Result] = {}
        self._unwanted: set[int] = set()
        try:
            for device in devices:
                self.engines.append(EngineProcess(name, _environment(device, threads)))
                self.engines[-1].send(settings)
        except BaseException:
            self.close()
            raise

    def wait_until_ready(self) -> None:
        """Raises ModelError when an engine cannot start."""
        for engine in self.engines:
            engine.max_sequences = engine.receive()

    def close(self) -> None:
        """Ends all processes."""
        for engine in self.engines:
            engine.close()
        self.engines = []

    def run(self, groups: Iterable[Sequence[tuple[Tag, Job]]]) -> Iterator[list[tuple[Tag, Result]]]:
        """Results with the tags of their jobs, some at a time, in any order.

        Jobs of one group go to the same engine, one after the other, and share their prefix there. `groups` is read as
        engines become free. Several runs can be under way at the same time.
        """
        waiting = iter(groups)
        tags: dict[int, Tag] = {}
        try:
            more = self._hand_out(waiting, tags)
            while tags or more:
                self._collect(tags)
                more = more and self._hand_out(waiting, tags)
                if ready := [number for number in tags if number in self._arrived]:
                    yield [(tags.pop(number), self._arrived.pop(number)) for number in ready]
        finally:  # whoever stops listening early leaves nothing behind
            self._unwanted.update(number for number in tags if self._arrived.pop(number, None) is None)

    def _hand_out(self, waiting: Iterator[Sequence[tuple[Tag, Job]]], tags: dict[int, Tag]) -> bool:
        """Groups to the engine with the least to do, until all have plenty; whether there may be more."""
        parcels: list[list[tuple[int, Job]]] = [[] for _ in self.engines]
        group: Sequence[tuple[Tag, Job]] | None = ()
        while group is not None:
            engine, parcel = min(zip(self.engines, parcels, strict=True), key=lambda pair: pair[0].load)
            if engine.load >= QUEUED * engine.max_sequences:
                break
            group = next(waiting, None)
            for tag, job in group or ():
                number = next(self._numbers)
                tags[number] = tag
                engine.in_flight[number] = job.sampling["n"] if isinstance(job, Draw) else 1
                parcel.append((number, job))
        for engine, parcel in zip(self.engines, parcels, strict=True):
            if parcel:
                engine.send(parcel)
        return group is not None

    def _collect(self, tags: Mapping[int, Any]) -> None:
        """Waits for results, unless some of these jobs have arrived while another run was waiting."""
        if any(number in self._arrived for number in tags):
            return
        ready = wait([engine.connection for engine in self.engines])
        for engine in self.engines:
            if engine.connection in ready:
                for number, result in engine.receive():
                    del engine.in_flight[number]
                    if number in self._unwanted:
                        self._unwanted.remove(number)
                    else:
                        self._arrived[number] = result


def last_error(log: str) -> str:
    """What the last exception in a log says, on one line and not too long; empty where there is none."""
    found = ERROR_LINE.findall(log)
    return found[-1].strip()[:400] if found else ""


def _environment(device: str, threads: int) -> dict[str, str]:
    place = {"CUDA_VISIBLE_DEVICES": device} if device else ON_CPU | ({} if which("g++") else NO_COMPILER)
    return ENVIRONMENT | place | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def _python_path() -> str:
    """With this very package first, however the parent found it."""
    own = str(Path(__file__).parents[2])
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])

"""Runs one command in two processes, kills both, and runs it again; a program of its own because it forks.

    python killing_two.py '{"arguments": [...], "file": "runs/x/checkpoints/checkpoint-3/complete"}'

Both get SIGKILL when the file appears. Libraries are imported once, each start is two forks with a launcher's
environment. Prints one JSON object: whether the first start was killed, and the exit codes of the second.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def start(arguments: list[str]) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [_fork(arguments, rank, port) for rank in range(2)]


def _fork(arguments: list[str], rank: int, port: str) -> int:
    child = os.fork()
    if child == 0:
        from selfjudge.cli import main

        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os._exit(main(arguments))
    return child


def main() -> None:
    import selfjudge.steps.train  # noqa: F401  (what each start would import)

    task = json.loads(sys.argv[1])
    children = start(task["arguments"])
    while not Path(task["file"]).exists() and os.waitpid(children[0], os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    killed = Path(task["file"]).exists()
    for child in children if killed else children[1:]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(task["arguments"])]
    print(json.dumps({"killed": killed, "codes": codes}))


if __name__ == "__main__":
    main()

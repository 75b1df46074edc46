"""Runs one command again and again, killing it, until it ends by itself; a program of its own because it forks.

    python killing.py '{"arguments": [...], "folder": "runs/x", "moments": [0.4, "round-1/samples.jsonl"], "kills": 2}'

A moment is a number of seconds after the start, or a file of the folder: the process gets SIGKILL when that file
appears (or, where it is there already, is replaced). A run that ends before its moment is put aside as FOLDER-1,
FOLDER-2, ... and begun anew, until it was killed often enough. Libraries are imported once, each start is a fork.
Prints one JSON object: the number of kills, the last exit code, the finished folders, the seconds of each start.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def start(arguments: list[str]) -> int:
    child = os.fork()
    if child == 0:
        from selfjudge.cli import main

        os._exit(main(arguments))
    return child


def stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def watch(child: int, folder: Path, moment: float | str | None) -> tuple[bool, int]:
    """Kills the child at its moment; returns whether it was killed, and its exit code."""
    begun = time.monotonic()
    before = stamp(folder / moment) if isinstance(moment, str) else None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return False, os.waitstatus_to_exitcode(status)
        if isinstance(moment, str):
            due = stamp(folder / moment) not in (before, None)
        else:
            due = moment is not None and time.monotonic() - begun >= moment
        if due:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, -signal.SIGKILL
        time.sleep(0.0005)


def main() -> None:
    import selfjudge.loop  # noqa: F401  (what each start would import)

    task = json.loads(sys.argv[1])
    folder = Path(task["folder"])
    kills, seconds, finished, code = 0, [], [], 0
    for moment in [*task["moments"], None]:
        if kills == task["kills"]:
            moment = None
        begun = time.monotonic()
        killed, code = watch(start(task["arguments"]), folder, moment)
        seconds.append(round(time.monotonic() - begun, 2))
        kills += killed
        if code > 0:
            break
        if not killed:
            finished.append(f"{folder}-{len(finished) + 1}")
            folder.rename(finished[-1])
            if moment is None:
                break
    print(json.dumps({"kills": kills, "code": code, "finished": finished, "seconds": seconds}))


if __name__ == "__main__":
    main()

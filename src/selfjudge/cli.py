"""The command line: options -> one call -> a table or JSON.

    selfjudge align --model path/to/model --prompts prompts.jsonl --rounds 3

The flags of a command are the fields of its configuration class; `--config FILE.yaml` gives the same fields, flags win.
Exit codes: 0 done, 2 bad input (one line says what to do), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, NoReturn, get_args, get_origin

from selfjudge import __version__
from selfjudge import config as configs
from selfjudge.config import Options, flag
from selfjudge.console import Console, table
from selfjudge.errors import ConfigError, SelfjudgeError

COMMANDS: dict[str, tuple[type[Options], str]] = {
    "align": (configs.AlignConfig, "selfjudge.loop"),
    "demo": (configs.DemoConfig, "selfjudge.demo"),
    "sample": (configs.SampleConfig, "selfjudge.steps.sample"),
    "judge": (configs.JudgeConfig, "selfjudge.steps.judge"),
    "rescore": (configs.RescoreConfig, "selfjudge.steps.rescore"),
    "select": (configs.SelectConfig, "selfjudge.steps.select"),
    "train": (configs.TrainConfig, "selfjudge.steps.train"),
    "evaluate": (configs.EvaluateConfig, "selfjudge.steps.evaluate"),
    "bench": (configs.BenchConfig, "selfjudge.steps.bench"),
    "export": (configs.ExportConfig, "selfjudge.steps.export"),
    "search-questions": (configs.SearchQuestionsConfig, "selfjudge.steps.search_questions"),
    "compare": (configs.CompareConfig, "selfjudge.steps.compare"),
    "report": (configs.ReportConfig, "selfjudge.steps.report"),
}
"""Command -> its options and the module whose `run(config, console)` it calls, imported only then."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except SelfjudgeError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", code=130)
    except OSError as error:
        return _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        return _fail(f"out of GPU memory ({str(error).split('.')[0]}); {_LESS_MEMORY}")


_LESS_MEMORY = "lower --token-budget, --sample-batch or --micro-batch; the same command goes on from here"


def _fail(message: str, code: int = 2) -> int:
    for line in message.split("\n"):
        print(f"selfjudge: {line}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    parser = _parser()
    _check_command(arguments)
    known, unknown = parser.parse_known_args(arguments)
    if known.command is None:
        parser.print_help()
        return 0
    kind, module = COMMANDS[known.command]
    console = Console(quiet=known.quiet)
    config = _configure(kind, known, unknown)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and known.command != "train":
        raise ConfigError(f"{known.command} runs in one process; only train may be started by accelerate or torchrun")
    summary: dict[str, Any] = import_module(module).run(config, console)
    if several and os.environ.get("RANK", "0") != "0":
        return 0  # the first process tells
    writes_rows = getattr(config, "out", None) == "-"
    if known.json:
        print(json.dumps(summary), file=sys.stderr if writes_rows else sys.stdout)
    elif not known.quiet:
        print(table(summary), file=sys.stderr if writes_rows else sys.stdout)
    return 0


def _check_command(arguments: list[str]) -> None:
    word = arguments[0] if arguments else ""
    if word and not word.startswith("-") and word not in COMMANDS:
        close = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown command {word!r}; there are {', '.join(COMMANDS)}{hint}")


def _configure(kind: type[Options], known: argparse.Namespace, unknown: list[str]) -> Options:
    """Flags over YAML over defaults; all problems at once."""
    from selfjudge.checks import build_checked

    flags = {name: value for name, value in vars(known).items() if name in kind.model_fields}
    strays = {word[2:].split("=")[0].replace("-", "_"): None for word in unknown if word.startswith("--")}
    lone = [word for word in unknown if not word.startswith("--")]
    open_places = [name for name in kind.positional if name not in flags]
    words = dict(zip(open_places, lone, strict=False))
    if len(lone) > len(words) and not strays:
        excess = " ".join(lone[len(words) :])
        raise ConfigError(f"unexpected words: {excess}; options are given as --name value")
    return build_checked(kind, {**_read_yaml(known.config), **words, **flags, **strays})


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"--config {path}: should be a mapping of option names to values")
    return {str(name).replace("-", "_"): value for name, value in (values or {}).items()}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="selfjudge", description="Turn a language model into its own preference classifier.")
    parser.add_argument("--version", action="version", version=f"selfjudge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (kind, _) in COMMANDS.items():
        summary = (kind.__doc__ or "").strip()
        usage = f"selfjudge {name} {' '.join(kind.positional).upper()} [options]" if kind.positional else None
        parts = commands.add_parser(name, usage=usage, help=summary, description=summary, allow_abbrev=False)
        _add_options(parts, kind)
    return parser


def _add_options(parser: argparse.ArgumentParser, kind: type[Options]) -> None:
    for name, field in kind.model_fields.items():
        default = "needed" if field.is_required() else f"default: {_shown(field.default)}"
        text = f"{field.description} ({default})".replace("%", "%%")
        if field.annotation is bool:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(flag(name), action=action, default=argparse.SUPPRESS, help=text)
        else:
            metavar = _metavar(field.annotation)
            parser.add_argument(flag(name), default=argparse.SUPPRESS, metavar=metavar, help=text)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same options; flags win")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "none", True: "on", False: "off"}[default]
    return str(default)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    return {int: "N", float: "X"}.get(annotation, "TEXT")


if __name__ == "__main__":
    sys.exit(main())

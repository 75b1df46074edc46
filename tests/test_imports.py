"""What imports what: nothing heavy before it is needed, and never upwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "selfjudge"
HEAVY = {"torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"}
PURE = (
    *("labels", "rows", "ranking", "selection", "stats", "records", "questions", "errors", "ids", "config"),
    *("values", "shapes", "forms", "pair_formats", "answer_keys", "alarms"),
)
LAYERS = (
    ("cli", "api", "demo"),
    ("loop",),
    ("steps", "report"),
    ("judges", "measures", "judging_figures", "training_memory", "categories", "backends", "benchmarks", "inputs"),
    ("trainer", "preferences", "reference", "anchor", "checkpoints"),
    ("models", "rendering", "forward", "head", "attention", "memory", "sampling", "kv_cache", "processes"),
    ("store", "pair_files", "console", "readers", "model_names"),
    (
        *("config", "labels", "rows", "ranking", "selection", "stats", "losses", "questions", "ids", "lab"),
        "training_figures",
        *("values", "shapes", "forms", "pair_formats", "answer_keys", "alarms"),
    ),
    ("records",),
    ("errors",),
)
"""From top to bottom; a module may import its own layer and those below."""
BESIDE = {"checks": 2, "__init__": 9, "lab.build": 2, "lab.train": 2, "lab.measure": 2, "lab.rows": 2}


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def layer_of(module: str) -> int:
    if module in BESIDE:
        return BESIDE[module]
    top = module.split(".")[0]
    return next(number for number, names in enumerate(LAYERS) if top in names)


def own_imports(file: Path) -> set[str]:
    """Modules of this package that the file names, type-checking blocks left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "selfjudge":
            rest = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = PACKAGE / rest.replace(".", "/") / alias.name
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                found.add(".".join(filter(None, (rest, alias.name))) if is_module else rest or "__init__")
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("selfjudge.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[module_of(file) for file in FILES])
def test_imports_point_down(file: Path) -> None:
    module = module_of(file)
    upward = {found for found in own_imports(file) if layer_of(found) < layer_of(module)}
    assert not upward, f"{module} imports {sorted(upward)}, which stand above it"


def test_the_walk_sees_imports() -> None:
    """Without this a change of the walk could let everything pass."""
    assert own_imports(PACKAGE / "cli.py") >= {"config", "console", "errors", "checks"}
    assert own_imports(PACKAGE / "loop.py") >= {"steps", "steps.train", "store"}
    assert layer_of("cli") < layer_of("loop") < layer_of("steps.train") < layer_of("trainer") < layer_of("rows")


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_nothing_heavy(module: str) -> None:
    allowed = {"numpy"} if module in ("stats", "ranking") else set[str]()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = PACKAGE / name.replace(".", "/")
        file = (
            file / "__init__.py" if file.is_dir() and not file.with_suffix(".py").is_file() else file.with_suffix(".py")
        )
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        } | {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not names & (HEAVY - allowed), f"{module} imports {names & HEAVY} by way of {name}"
        waiting += own_imports(file)


def loaded_by(statement: str, env: dict[str, str]) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    program = f"import sys\n{statement}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return {line.split(".")[0] for line in done.stderr.splitlines()}


def test_importing_the_package_loads_nothing_heavy(child_env: dict[str, str]) -> None:
    loaded = loaded_by("import selfjudge", child_env)
    assert "selfjudge" in loaded
    assert not loaded & (HEAVY | {"pydantic", "yaml", "tqdm"})


@pytest.mark.parametrize("arguments", [["--help"], ["align", "--help"], []], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str], child_env: dict[str, str]) -> None:
    statement = f"from selfjudge.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    loaded = loaded_by(statement, child_env)
    assert "argparse" in loaded
    assert not loaded & (HEAVY | {"yaml", "tqdm"})


def test_a_wrong_option_is_found_without_anything_heavy(child_env: dict[str, str]) -> None:
    loaded = loaded_by("from selfjudge.cli import main; main(['align', '--beat', '1'])", child_env)
    assert not loaded & (HEAVY - {"numpy"})


def test_public_names_are_there() -> None:
    import selfjudge

    assert all(callable(getattr(selfjudge, name)) for name in selfjudge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Juge'"):
        selfjudge.Juge  # noqa: B018

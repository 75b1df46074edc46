"""Options: a field is a flag, a YAML key, a default and a help text; problems are told all at once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from selfjudge.checks import build_checked
from selfjudge.cli import COMMANDS, _configure, _parser, main
from selfjudge.config import (
    API_OPTIONS,
    AlignConfig,
    DemoConfig,
    EvaluateConfig,
    JudgeConfig,
    Options,
    SampleConfig,
    SelectConfig,
    TrainConfig,
    build,
    flag,
)
from selfjudge.errors import ConfigError
from selfjudge.questions import BUILT_IN

FIELDS = [(command, name) for command, (kind, _) in COMMANDS.items() for name in kind.model_fields]


@pytest.fixture
def needed(tmp_path: Path) -> dict[str, Any]:
    """Values for every option that has no default or names a file, such that all checks pass."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "run").mkdir()
    rows = str(tmp_path / "rows.jsonl")
    return {
        "model": "owner/name",
        "prompts": rows,
        "input": rows,
        "benchmark": rows,
        "run": str(tmp_path / "run"),
        "a": str(tmp_path / "run"),
        "b": str(tmp_path / "run"),
        "out": str(tmp_path / "out.jsonl"),
    }


def of(kind: type[Options], needed: dict[str, Any]) -> dict[str, Any]:
    """Those of `needed` that a command takes; a run's benchmark is left out, it excludes --holdout."""
    if kind is DemoConfig:
        return {"out": str(Path(needed["out"]).with_suffix(""))}
    names = [name for name in needed if name in kind.model_fields and (kind is not AlignConfig or name != "benchmark")]
    return {name: needed[name] for name in names}


def another_value(field: FieldInfo, name: str) -> Any:
    """An allowed value that is not the default."""
    if field.annotation is bool:
        return not field.default
    if get_origin(field.annotation) is not None and isinstance(get_args(field.annotation)[0], str):
        return next(value for value in get_args(field.annotation) if value != field.default)
    if name == "device":
        return "cuda:3"
    if field.annotation in (int, float):
        return next(v for v in (2, 3, 0.25) if v != field.default and _allowed(field, v))
    return "some/word"


def _allowed(field: FieldInfo, value: float) -> bool:
    limits = {type(m).__name__: m for m in field.metadata}
    below = [value < limits["Lt"].lt] if "Lt" in limits else []
    return all(
        [*below, "Le" not in limits or value <= limits["Le"].le, field.annotation is float or value == int(value)]
    )


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    return _parser().parse_known_args(arguments)


def configured(command: str, arguments: list[str]) -> Any:
    known, unknown = parsed([command, *arguments])
    return _configure(COMMANDS[command][0], known, unknown)


def as_flags(values: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        else:
            words += [flag(name), str(value)]
    return words


@pytest.mark.parametrize("command", COMMANDS)
def test_without_options_every_default_is_that_of_the_class(command: str, needed: dict[str, Any]) -> None:
    kind = COMMANDS[command][0]
    config = configured(command, as_flags(of(kind, needed)))
    for name, field in kind.model_fields.items():
        if name not in of(kind, needed):
            assert getattr(config, name) == field.default


@pytest.mark.parametrize(("command", "name"), FIELDS, ids=["-".join(pair) for pair in FIELDS])
def test_a_field_is_a_flag_and_a_yaml_key(command: str, name: str, tmp_path: Path) -> None:
    """The same value by both ways gives the same configuration, and it arrives."""
    kind = COMMANDS[command][0]
    field = kind.model_fields[name]
    value = another_value(field, name)
    by_flag = parsed([command, *as_flags({name: value})])
    assert not by_flag[1], "the flag is unknown to the parser"
    file = tmp_path / "options.yaml"
    file.write_text(json.dumps({name.replace("_", "-"): value}))
    from selfjudge.cli import _read_yaml

    assert _read_yaml(str(file)) == {name: value}
    required = {n: "x/y" for n, f in kind.model_fields.items() if f.is_required()}
    from_flag = build(kind, required | {name: getattr(by_flag[0], name)})
    assert from_flag == build(kind, required | {name: value})
    assert getattr(from_flag, name) == value
    assert value != field.default


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in COMMANDS[command][0].model_fields.items():
        assert flag(name) in text
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"(default: {field.default})" in text


def test_flags_win_over_yaml(tmp_path: Path, needed: dict[str, Any]) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("temperature: 0.5\nnum-responses: 7\nseed: 3\n")
    config = configured("sample", [*as_flags(of(SampleConfig, needed)), "--config", str(file), "--seed", "4"])
    assert (config.temperature, config.num_responses, config.seed) == (0.5, 7, 4)


# Problems


def problems(kind: type[Options], values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        build_checked(kind, values)
    return str(raised.value).split("\n")


def test_all_problems_at_once(tmp_path: Path) -> None:
    found = problems(
        AlignConfig,
        {
            "model": str(tmp_path / "none"),
            "prompts": str(tmp_path / "none.jsonl"),
            "los": "dpo",
            "loss": "irep",
            "seed": "abc",
            "device": "gpu",
            "temperature": 0,
            "holdout": 0,
            "out": str(tmp_path),
        },
    )
    assert sorted(found) == sorted(
        [
            "unknown option --los; the nearest is --loss",
            "--device 'gpu': should be auto, cpu, cuda or cuda:N",
            "--seed 'abc': should be a valid integer, unable to parse string as an integer",
            "--loss 'irep': should be 'dpo', 'soft-bce', 'azar' or 'irepo' (did you mean irepo?)",
            f"model {tmp_path}/none: no such folder; give a model folder, a hub name owner/model, or lab or lab-weak",
            "--temperature 0 gives 4 times the same response; raise it or use --num-responses 1",
            "--temperature 0 gives 4 times the same response; raise it or use --eval-samples 1",
            "--holdout 0 leaves nothing to evaluate on; give a share above 0, or a --benchmark",
            f"--prompts {tmp_path}/none.jsonl: no such file; give a file, or lab, lab-dev for the built-in world",
        ]
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("num_respnses", "; the nearest is --num-responses"),
        ("temprature", "; the nearest is --temperature"),
        ("no_quiet", "; the nearest is --quiet"),
        ("zzz", "; see selfjudge sample --help"),
    ],
)
def test_an_unknown_option_gets_the_nearest(name: str, shown: str, needed: dict[str, Any]) -> None:
    assert problems(SampleConfig, of(SampleConfig, needed) | {name: 1}) == [f"unknown option {flag(name)}{shown}"]


def test_general_flags_are_no_yaml_keys(needed: dict[str, Any]) -> None:
    assert problems(SampleConfig, of(SampleConfig, needed) | {"quiet": True}) == [
        "--quiet belongs on the command line, not in the file"
    ]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (TrainConfig, {"tau": 0.5}, "--tau has no effect with --loss dpo"),
        (TrainConfig, {"z_max": 3.0}, "--z-max has no effect with --loss dpo"),
        (TrainConfig, {"beta": 0.5, "loss": "azar"}, "--beta has no effect with --loss azar"),
        (TrainConfig, {"lora_rank": 0, "lora_alpha": 8}, "--lora-alpha has no effect with --lora-rank 0"),
        (TrainConfig, {"lora_rank": 0, "reference": "base"}, "--reference base is the model under an adapter"),
        (TrainConfig, {"reference": "first"}, "--reference first needs --reference-model"),
        (TrainConfig, {"reference_model": "lab"}, "--reference-model has no effect with --reference sample"),
        (TrainConfig, {"reference": "first", "reference_model": "no/such/place"}, "model no/such/place"),
        (TrainConfig, {"anchor": 8}, "--anchor N and --anchor-input FILE go together"),
        (TrainConfig, {"anchor_input": __file__}, "--anchor N and --anchor-input FILE go together"),
        (TrainConfig, {"anchor_weight": 2.0}, "--anchor-weight has no effect with --anchor 0"),
        (
            AlignConfig,
            {"anchor": 8, "judge": "oracle"},
            "--anchor holds on to the model's own verdicts",
        ),
        (AlignConfig, {"anchor": 8, "judge_model": "lab"}, "--anchor holds on to the model's own verdicts"),
        (AlignConfig, {"anchor": 8, "in_place": True}, "--anchor holds on to the model's own verdicts"),
        (TrainConfig, {"batch_size": 6, "micro_batch": 4}, "--micro-batch 4 does not divide --batch-size 6"),
        (TrainConfig, {"early_stop": 2, "validation": 0}, "--early-stop 2 needs prompts to validate on"),
        (TrainConfig, {"eval_steps": 9, "validation": 0}, "--eval-steps 9 needs prompts to validate on"),
        (
            TrainConfig,
            {"early_stop": 2, "epochs": 2},
            "--early-stop 2 can never stop 2 epochs with one",
        ),
        (TrainConfig, {"early_stop": 2, "eval_steps": 9, "save_steps": 9}, "--save-steps has no effect with --early"),
        (TrainConfig, {"quantize": "nf4", "lora_rank": 0}, "--quantize nf4: 4-bit weights cannot be trained"),
        (TrainConfig, {"dtype": "float16"}, "--dtype float16 cannot be trained in"),
        (TrainConfig, {"backend": "fake"}, "--backend fake has no weights to train"),
        (TrainConfig, {"backend": "vllm"}, "--backend vllm has no effect on train, which is in transformers"),
        (SampleConfig, {"backend": "vllm", "sample_batch": 8}, "--sample-batch has no effect with --backend vllm"),
        (JudgeConfig, {"backend": "vllm", "token_budget": 99}, "--token-budget has no effect with --backend vllm"),
        (EvaluateConfig, {"backend": "vllm", "token_budget": 99}, "--token-budget has no effect with --backend vllm"),
        (
            SelectConfig,
            {"agreement_key": "last-line"},
            "--agreement-key has no effect with --agreement 0; leave it out",
        ),
        (AlignConfig, {"agreement_key": "exact"}, "--agreement-key has no effect with --agreement 0; leave it out"),
        (AlignConfig, {"stop_on": "margin,lenght"}, "--stop-on 'lenght': should be margin, length, mass, diversity, "),
        (AlignConfig, {"warn_on": ""}, "--warn-on '': should be margin, length"),
        (
            AlignConfig,
            {"stop_on": "mass", "label_mass": 0},
            "--stop-on mass has nothing to look at with --label-mass 0",
        ),
        (AlignConfig, {"stop_on": "margin", "judge": "random"}, "--stop-on margin says nothing of --judge random"),
        (AlignConfig, {"num_responses": 1}, "--num-responses 1: a pair needs at least 2"),
        (AlignConfig, {"benchmark": "lab", "holdout": 0.2}, "--holdout has no effect with --benchmark"),
        (AlignConfig, {"prompts": "-"}, "--prompts -: several rounds cannot read from a pipe"),
        (
            SampleConfig,
            {"temperature": 0, "num_responses": 1, "top_k": 5},
            "--top-k has no effect with --temperature 0",
        ),
        (JudgeConfig, {"judge": "random"}, "--model has no effect with --judge random"),
        (JudgeConfig, {"seed": 3}, "--seed has no effect with --judge yes-no"),
        (JudgeConfig, {"model": None}, "--model is needed by the yes-no judge"),
        (JudgeConfig, {"judge": "oracle", "in_place": True, "model": None}, "--in-place has no effect with --judge"),
        (AlignConfig, {"judge": "oracle", "in_place": True}, "--in-place has no effect with --judge oracle"),
        (JudgeConfig, {"compare_separate": 8}, "--compare-separate has no effect with --in-place False"),
        (SampleConfig, {"questions": str(BUILT_IN)}, "--questions has no effect with --in-place False"),
        (EvaluateConfig, {"num_responses": 2}, "unknown option --num-responses"),
        (EvaluateConfig, {"temperature": 0}, "--temperature 0 gives 4 times the same response; raise it or use --eval"),
        (SelectConfig, {"out": "rows.json"}, "--out rows.json: the name must end in .jsonl"),
        (DemoConfig, {"out": __file__}, f"--out {__file__}: is a file; give a folder"),
    ],
)
def test_combinations_that_do_nothing_or_cannot_work(
    kind: type[Options], values: dict[str, Any], expected: str, needed: dict[str, Any]
) -> None:
    good = of(kind, needed)
    assert build_checked(kind, good)
    assert problems(kind, good | values)[0].startswith(expected)


@pytest.mark.parametrize("installed", [False, True])
def test_vllm_is_optional(installed: bool, needed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Training keeps the token budget under align, whatever samples."""
    monkeypatch.setattr("selfjudge.checks.find_spec", lambda _: object() if installed else None)
    values = of(AlignConfig, needed) | {"backend": "vllm", "token_budget": 512}
    missing = "--backend vllm: vLLM is not installed; pip install 'selfjudge[vllm]', or use --backend hf"
    assert build_checked(AlignConfig, values) if installed else problems(AlignConfig, values) == [missing]


def test_an_early_stop_that_can_come(needed: dict[str, Any]) -> None:
    for values in ({"early_stop": 2, "epochs": 3}, {"early_stop": 2, "eval_steps": 9}):
        assert build_checked(TrainConfig, of(TrainConfig, needed) | values)


def test_four_bits_need_bitsandbytes_and_a_gpu(needed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = of(TrainConfig, needed) | {"quantize": "nf4"}
    monkeypatch.setattr("selfjudge.checks.find_spec", lambda _: None)
    missing = "--quantize nf4: bitsandbytes is not installed; pip install 'selfjudge[qlora]'"
    assert problems(TrainConfig, values) == [missing]
    monkeypatch.setattr("selfjudge.checks.find_spec", lambda _: object())
    assert build_checked(TrainConfig, values)
    needs = "--quantize nf4 needs a GPU; leave it out, or --device cpu"
    assert problems(TrainConfig, values | {"device": "cpu"}) == [needs]


def test_an_adapter_keeps_its_rank(tmp_path: Path, needed: dict[str, Any]) -> None:
    """Training goes on with the adapter as it is; another rank would be accepted and ignored."""
    (tmp_path / "adapter_model.safetensors").touch()
    settings = {"base_model_name_or_path": "owner/name", "r": 8, "lora_alpha": 32}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    values = of(TrainConfig, needed) | {"model": str(tmp_path)}
    assert problems(TrainConfig, values) == [f"--lora-rank 16: the adapter in {tmp_path} has 8; give that"]
    assert build_checked(TrainConfig, values | {"lora_rank": 8})


def test_what_may_change_on_a_resume(needed: dict[str, Any]) -> None:
    """Paths, memory and speed may; everything else decides what is computed."""
    deciding = build(AlignConfig, of(AlignConfig, needed)).deciding()
    free = {name for name in AlignConfig.model_fields if name not in deciding}
    assert free == {
        *("device", "threads", "trust_remote_code", "token_budget", "sample_batch", "micro_batch"),
        *("gradient_checkpointing", "save_steps", "out", "rounds"),
        *API_OPTIONS,
    }


def test_remote_code_is_off_by_default_and_no_option_takes_a_secret() -> None:
    for kind, _ in COMMANDS.values():
        fields = kind.model_fields
        assert "trust_remote_code" not in fields or fields["trust_remote_code"].default is False
        assert not [
            name
            for name in fields.keys()
            - {"api_key_env"}  # the name of a variable; a key given there is refused, unrepeated
            if any(word in name for word in ("api_key", "secret", "password", "hf_token"))
        ]


def test_a_missing_option_does_not_hide_what_is_wrong_with_the_others(tmp_path: Path) -> None:
    """Neither a missing model nor a wrong value keeps a missing file from being named."""
    with pytest.raises(ConfigError) as error:
        build_checked(AlignConfig, {"prompts": str(tmp_path / "none.jsonl"), "beta": "-1"})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("--model is needed") for line in lines)
    assert any(line.startswith("--beta") for line in lines)
    assert any("none.jsonl: no such file" in line for line in lines)


@pytest.mark.parametrize(("command", "name"), [("judge", "thinking"), ("sample", "token_budget")])
def test_a_command_has_no_option_that_it_would_ignore(command: str, name: str) -> None:
    """A judge's question opens no thinking part; sampling packs no rows."""
    assert name not in COMMANDS[command][0].model_fields
    assert name in COMMANDS["align"][0].model_fields

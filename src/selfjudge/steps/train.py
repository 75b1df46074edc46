"""Selected responses -> a trained model, with its log and checkpoints."""

from __future__ import annotations

import math
import shutil
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainerState, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D

from selfjudge.anchor import Anchor, VerdictFile
from selfjudge.backends.prompts import Prompts
from selfjudge.checkpoints import MarkComplete, StopEarly, newest_checkpoint
from selfjudge.config import TrainConfig
from selfjudge.console import Console
from selfjudge.errors import ConfigError, DataError, StepError
from selfjudge.forward import causal_lm
from selfjudge.inputs import Source, read_scorable
from selfjudge.losses import loss_options
from selfjudge.memory import free_bytes, tokens_per_row
from selfjudge.models import ModelSource, load_model, load_tokenizer, quiet_libraries, read_outline
from selfjudge.preferences import Preference, PreferenceFile, on_disk
from selfjudge.processes import Processes, join_processes, leave_processes, number_started
from selfjudge.readers import hash_share
from selfjudge.records import Example
from selfjudge.reference import under_other_model, with_reference
from selfjudge.rendering import Renderer
from selfjudge.steps import Summary, step_meta
from selfjudge.steps.anchoring import add_verdicts, judged_with
from selfjudge.store import Row, StepOutput, new_folder, open_output, read_rows, replace_folder, without_nan
from selfjudge.trainer import Log, Objective, Policy, PreferenceTrainer, disable_dropout
from selfjudge.training_memory import GIB, training_memory, tried_micro_batch

UNUSABLE = ("train_loss", "total_flos")  # transformers' mean loss is wrong after a restart, its flops are not counted
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 4096}  # at most, of one backward pass; more is no faster
FREE_SHARE = 0.8  # of the free memory, for a backward pass that the memory limits; allocators waste some
TARGET_LOSSES = ("irepo", "soft-bce")
LAST_FIGURES = (
    "accuracy",
    "log_ratio_difference",
    "chosen_change",
    "rejected_change",
    "chosen_logp",
    "rejected_logp",
    "forward_kl",
    "target_correlation",
    "clipped_share",
    "grad_norm",
    "anchor",
)
"""What the summary has of the last step, beside its loss."""


def run(config: TrainConfig, console: Console) -> Summary:
    """Trains into `out/model`; the log is `out/training.jsonl`, checkpoints stand in `out/checkpoints` meanwhile."""
    if number_started() > 1 and config.input == "-":
        raise ConfigError("--input -: several processes cannot read from one pipe; give a file")
    if number_started() > 1 and config.anchor:
        raise ConfigError("--anchor trains in one process; start it without torchrun or accelerate launch")
    processes = join_processes(config.device)
    work = Work(Path(config.out), None, console if processes.is_first else Console(quiet=True), processes)
    if processes.count > 1:
        work.console.say(f"train: {processes.count} processes, each with a share of every batch")
    with read_scorable(config.input, ("responses",)) as examples, _own_verdicts(config) as judged:
        _check_trainable(examples, config)
        if processes.is_first:
            entries = {"input": examples.entry} | ({"anchor_input": judged.entry} if judged else {})
            with open_output(work.out / "training.jsonl", step_meta("train", config, **entries)) as log:
                summary = _finished(config, (examples, judged), replace(work, log=log))
        else:
            summary = _finished(config, (examples, judged), work)
    leave_processes(processes)
    return summary


@dataclass(frozen=True)
class Work:
    """Where the step writes and what it says: the log only in the first of several processes."""

    out: Path
    log: StepOutput | None
    console: Console
    processes: Processes


def _finished(config: TrainConfig, rows: tuple[Source, Source | None], work: Work) -> Summary:
    """The summary, of earlier or of now; empty but in the first process."""
    if work.processes.from_first(work.log is not None and work.log.finished):
        return {} if work.log is None else work.log.summary
    summary = _train(config, rows, work)
    if work.log is not None:
        work.log.finish(summary)
        shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    return summary


def _own_verdicts(config: TrainConfig) -> AbstractContextManager[Source | None]:
    return nullcontext() if config.anchor_input is None else read_scorable(config.anchor_input, ("responses", "scores"))


def _check_trainable(examples: Source, config: TrainConfig) -> None:
    """Every row has what the loss needs; looked at before a model is loaded."""
    for example in examples:
        if len(example.responses) < 2:
            raise DataError.at(config.input, None, f"{example.id} has 1 response; a pair needs two")
        if example.strengths:
            _check_unequal(example, example.strengths, config)
            continue
        if example.gold is None:
            raise DataError.at(
                config.input,
                None,
                f"{example.id} has no strengths (`selfjudge select` adds them) and no chosen and rejected responses",
            )
        if config.loss in TARGET_LOSSES:
            raise DataError.at(
                config.input,
                None,
                f"{example.id} has no scores, which --loss {config.loss} needs; judge and select the pairs first, or "
                "use dpo or azar",
            )
        _check_unequal(example, _gold_strengths(example), config)


def _check_unequal(example: Example, strengths: Sequence[float], config: TrainConfig) -> None:
    if len(strengths) != len(example.responses) or len(set(strengths)) < 2:
        found = f"{len(example.responses)} responses with strengths {list(strengths)}"
        raise DataError.at(config.input, None, f"{example.id} has no pair to train on: {found}")


def _train(config: TrainConfig, rows: tuple[Source, Source | None], work: Work) -> Summary:
    """`rows`: the pairs, and the judged rows of the anchor."""
    (examples, judged), out, console = rows, work.out, work.console
    dtype = _weight_dtype(config)
    source = ModelSource(config.model, config.device, dtype, config.trust_remote_code, config.threads, config.quantize)
    quiet_libraries()
    tokenizer = load_tokenizer(source)
    renderer = Renderer(tokenizer, config.model, config.thinking)
    outline = read_outline(source, tokenizer)
    room = min(config.max_length or 1 << 30, outline.context_length)
    with on_disk(out) as fitting, on_disk(out) as anew, on_disk(out, VerdictFile) as verdicts:
        _render(examples, renderer, room, config, fitting)
        _say_left_out(len(examples), len(fitting), room, config, console)
        if judged is not None:
            asking = Prompts(renderer, config.model, outline.num_embeddings, room)
            add_verdicts(judged, judged_with(str(config.anchor_input), config.model), asking, verdicts)
        if config.reference_model is not None:  # before the other one: they are never in memory together
            other = replace(source, name=config.reference_model)
            objective = partial(_objective, config, other)
            under_other_model(other, fitting, anew, tokenizer.get_vocab(), objective, console)
        set_seed(config.seed)
        model = _trainable(load_model(source, trainable=True)[0], config)
        longest = max(verdicts.longest, max(preference.longest for preference in fitting))
        policy = Policy(model, longest, _objective(config, source, causal_lm(model)), console.say, work.processes)
        with policy.forward:
            if policy.forward.unpacked_because:
                console.say(f"train: no packed rows, because {policy.forward.unpacked_because}")
            preferences, origin = anew, config.reference
            if config.reference_model is None:
                preferences, origin = with_reference(policy, fitting, anew, config.reference, console)
            parts = _split(preferences, config)
            anchor = Anchor(policy, verdicts, config.anchor, config.anchor_weight, config.seed) if verdicts else None
            figures = _optimise(config, policy, parts, anchor, work)
    if work.processes.is_first:
        _save(model, config, source, out)
    train, validation = parts
    counts = {
        "prompts": len(train),
        "validation_prompts": len(validation),
        "too_long": len(examples) - len(preferences),
    }
    return counts | {"reference": origin} | figures


def _weight_dtype(config: TrainConfig) -> str:
    """All weights are trained in float32 (bfloat16 rounds small updates away); under an adapter they may be smaller."""
    return config.dtype if config.lora_rank else "float32"


def _objective(config: TrainConfig, source: ModelSource, model: PreTrainedModel) -> Objective:
    options = {name: float(getattr(config, name)) for name in loss_options(config.loss)}
    compute = replace(source, dtype=config.dtype).torch_dtype()
    budget = config.token_budget or tokens_per_row(model)
    return Objective(config.loss, options, budget, None if compute == torch.float32 else compute)


# From rows to preferences


def _preference(example: Example, renderer: Renderer, config: TrainConfig) -> Preference:
    strengths = example.strengths or _gold_strengths(example)
    sampled = example.prompt_ids is not None and all(response.token_ids for response in example.responses)
    if sampled:
        prompt = example.prompt_ids or ()
        answers = [response.token_ids or () for response in example.responses]
    else:
        rendered = [renderer.response_ids(example.messages, response.text) for response in example.responses]
        prompt, answers = tuple(rendered[0][0]), [tuple(ids) for _, ids in rendered]
    known = sampled and config.reference == "sample"
    logps = tuple(_or_nan(response.logprob) if known else math.nan for response in example.responses)
    return Preference(example.id, tuple(prompt), tuple(answers), strengths, logps)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _gold_strengths(example: Example) -> tuple[float, ...]:
    """1 for right and 0 for wrong responses of a user's pairs, which have no scores."""
    return tuple(float(index in (example.gold or ())) for index in range(len(example.responses)))


def _render(examples: Source, renderer: Renderer, room: int, config: TrainConfig, fitting: PreferenceFile) -> None:
    """Keeps the prompts whose longest response fits; cutting it would train on something nobody wrote."""
    for example in examples:
        preference = _preference(example, renderer, config)
        if preference.longest <= room:
            fitting.append(preference)


def _say_left_out(given: int, kept: int, room: int, config: TrainConfig, console: Console) -> None:
    if not kept:
        raise DataError.at(config.input, None, f"every prompt with its responses exceeds {room} tokens")
    if given > kept:
        console.say(f"train: {given - kept} of {given} prompts left out, longer than {room} tokens")


def _split(preferences: PreferenceFile, config: TrainConfig) -> tuple[Subset[Preference], Subset[Preference]]:
    """Training and validation prompts, by a hash of the id, so that neither order nor number matters."""
    train, validation = array("Q"), array("Q")
    for index, preference in enumerate(preferences):
        (validation if hash_share(preference.id) < config.validation else train).append(index)
    if not train:
        raise StepError(f"no prompt is left to train on ({len(preferences)} in all, {len(validation)} for validation)")
    if config.early_stop and not validation:
        number = len(preferences)
        raise StepError(f"--early-stop: --validation {config.validation} of {number} prompts is none; raise the share")
    return Subset(preferences, train), Subset(preferences, validation)


# Model


def _trainable(model: PreTrainedModel | PeftModel, config: TrainConfig) -> PreTrainedModel | PeftModel:
    """The model with the weights to train enabled: an adapter (an existing one goes on) or everything."""
    disable_dropout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(model, PeftModel) or not config.lora_rank:
        return model
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores its weights so
    )
    return get_peft_model(model, adapter)  # pyright: ignore[reportReturnType]


# Optimisation


def _optimise(
    config: TrainConfig,
    policy: Policy,
    parts: tuple[Subset[Preference], Subset[Preference]],
    anchor: Anchor | None,
    work: Work,
) -> dict[str, Any]:
    (train, validation), out, log = parts, work.out, work.log
    steps = math.ceil(len(train) / config.batch_size) * config.epochs
    anchored = 0 if anchor is None else math.ceil(anchor.size * anchor.verdicts.longest / config.batch_size)
    micro_batch = _micro_batch(config, policy, train, anchored, work.console)
    arguments = _arguments(config, policy, out, steps, micro_batch, len(validation) > 0)
    with work.console.progress("train", steps, unit="step") as bar:

        def on_log(step: int, record: Log) -> None:
            record = without_nan({name: value for name, value in record.items() if name not in UNUSABLE})
            kind = "validation" if "eval_loss" in record else "step" if "loss" in record else "total"
            key = f"{kind}-{step}"
            if log is not None and key not in log.done_ids:
                log.append([{"id": key, "kind": kind, "step": step} | record])
            bar.update(step - bar.n)

        trainer = PreferenceTrainer(policy, train, validation, arguments, on_log, anchor)
        trainer.add_callback(MarkComplete(work.processes))
        if config.early_stop:
            trainer.add_callback(StopEarly(config.early_stop))
        newest = newest_checkpoint(out / "checkpoints", work.processes, work.console.say)
        trainer.train(resume_from_checkpoint=newest)
    stopping = _stopping(trainer.state, steps) if config.early_stop else {}
    return _figures(out / "training.jsonl", stopping) if work.processes.is_first else {}


def _stopping(state: TrainerState, steps: int) -> dict[str, Any]:
    """Which step's model was kept, and where the training stopped if that was before its last step."""
    if state.best_model_checkpoint is None or not Path(state.best_model_checkpoint).is_dir():
        raise StepError(f"the best model's checkpoint {state.best_model_checkpoint} is gone; delete --out, train again")
    stopped = state.global_step if state.global_step < steps else None
    return {"stopped_at_step": stopped, "best_step": state.best_global_step}


def _arguments(
    config: TrainConfig, policy: Policy, out: Path, steps: int, micro_batch: int, validates: bool
) -> TrainingArguments:
    """Warm-up is rounded down: its first step has learning rate 0 and must not be the only one."""
    on_cpu = policy.model.device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch_size // micro_batch,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=int(steps * config.warmup),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        label_names=[],
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_total_limit=1,
        **_moments(config, validates),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]  more GPUs must not change the batch
    return arguments


def _moments(config: TrainConfig, validates: bool) -> dict[str, Any]:
    """When it validates and when it saves; what can stop early saves at every validation, as each may be the best."""
    evaluation = "no" if not validates else "steps" if config.eval_steps else "epoch"
    saving, save_steps = "steps" if config.save_steps else "no", config.save_steps
    if config.early_stop:
        saving, save_steps = evaluation, config.eval_steps
    return {
        "eval_strategy": evaluation,
        "eval_steps": config.eval_steps or None,
        "save_strategy": saving,
        "save_steps": save_steps or 500,  # anything: not used unless the strategy is steps
        "load_best_model_at_end": bool(config.early_stop),
        "metric_for_best_model": "eval_loss" if config.early_stop else None,
        "greater_is_better": False if config.early_stop else None,
    }


def _micro_batch(
    config: TrainConfig, policy: Policy, train: Subset[Preference], anchored: int, console: Console
) -> int:
    """Prompts of one backward pass of all processes, as many as the memory takes; says what the training will need.

    `anchored`: tokens of the anchor's verdicts that go with each prompt.
    """
    sizes = array("Q", (train[index].tree.num_tokens + anchored for index in range(len(train))))
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    memory = training_memory(policy, train[by_size[len(by_size) // 2]])
    processes, device = policy.processes, causal_lm(policy.model).device
    free = min(processes.gather(free_bytes(device)))
    fitting = min(TOKENS_AT_ONCE[device.type], memory.tokens(FREE_SHARE * free)) // sizes[by_size[-1]]
    falling = _divisors(config.batch_size, processes.count * (config.micro_batch or fitting))
    micro_batch = falling[0]
    if device.type == "cuda":
        shares = [-(-size // processes.count) for size in falling]
        largest = [train[index] for index in by_size[: -micro_batch - 1 : -processes.count]]
        tried = tried_micro_batch(policy, largest, shares, memory.optimizer, console.say)
        micro_batch = falling[max(processes.gather(shares.index(tried)))]
    tokens = sum(sizes[index] for index in by_size[: -micro_batch - 1 : -processes.count])
    console.say(f"train: needs about {memory.describe(tokens)}")
    if memory.peak(tokens) - memory.weights > free:
        console.say(f"train: only {free / GIB:.2f} GiB are free; --gradient-checkpointing or --lora-rank need less")
    return micro_batch


def _divisors(number: int, limit: int) -> list[int]:
    """The divisors of `number` up to `limit`, at least 1, falling."""
    return [divisor for divisor in range(max(limit, 1), 0, -1) if number % divisor == 0]


def _figures(path: Path, stopping: dict[str, Any]) -> dict[str, Any]:
    """First and last loss, the last step's other figures, and the last validation or that of the model that is kept."""
    first: dict[str, Row] = {}
    last: dict[str, Row] = {}
    for row in read_rows(path):
        if row["kind"] == "validation" and row["step"] > stopping.get("best_step", math.inf):
            continue
        first.setdefault(row["kind"], row)
        last[row["kind"]] = row
    step = last["step"]
    figures = {"steps": step["step"], "first_loss": first["step"]["loss"], "last_loss": step["loss"]}
    figures |= {name: step[name] for name in LAST_FIGURES if name in step}
    if "validation" in last:
        validation = last["validation"]
        figures |= {
            "validation_loss": validation["eval_loss"],
            "validation_accuracy": validation["eval_accuracy"],
        }
    return figures | stopping


def _save(model: Any, config: TrainConfig, source: ModelSource, out: Path) -> None:
    """`out/model`, whole or not at all: weights in the dtype that was asked for, and the tokenizer as it was loaded."""
    temporary = new_folder(out / "model")
    dtype = replace(source, dtype=config.dtype).torch_dtype()
    (model if isinstance(model, PeftModel) else model.to(dtype)).save_pretrained(str(temporary))
    load_tokenizer(source).save_pretrained(str(temporary))
    replace_folder(temporary, out / "model")

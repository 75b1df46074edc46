"""Selected responses -> a trained model, with its log and checkpoints."""

from __future__ import annotations

import math
import shutil
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainerState, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D

from selfjudge.checkpoints import MarkComplete, StopEarly, newest_checkpoint
from selfjudge.config import TrainConfig
from selfjudge.console import Console
from selfjudge.errors import ConfigError, DataError, StepError
from selfjudge.forward import causal_lm
from selfjudge.inputs import Source, read_scorable
from selfjudge.losses import loss_options
from selfjudge.memory import free_bytes, tokens_per_row
from selfjudge.models import ModelSource, context_length, load_model, load_tokenizer
from selfjudge.preferences import Preference, PreferenceFile, on_disk
from selfjudge.processes import Processes, join_processes, leave_processes, number_started
from selfjudge.readers import hash_share
from selfjudge.records import Example
from selfjudge.rendering import Renderer
from selfjudge.steps import Summary, step_meta
from selfjudge.store import Row, StepOutput, new_folder, open_output, read_rows, replace_folder, without_nan
from selfjudge.trainer import Log, Objective, Policy, PreferenceTrainer, disable_dropout, without_adapter
from selfjudge.training_memory import GIB, training_memory, tried_micro_batch

CHECKED = 32  # prompts on which the sampler's log-probabilities are compared with the trainer's
DRIFT = 0.01  # nats per response; above it all reference log-probabilities are computed again
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
)
"""What the summary has of the last step, beside its loss."""


def run(config: TrainConfig, console: Console) -> Summary:
    """Trains into `out/model`; the log is `out/training.jsonl`, checkpoints stand in `out/checkpoints` meanwhile."""
    if number_started() > 1 and config.input == "-":
        raise ConfigError("--input -: several processes cannot read from one pipe; give a file")
    processes = join_processes(config.device)
    work = Work(Path(config.out), None, console if processes.is_first else Console(quiet=True), processes)
    if processes.count > 1:
        work.console.say(f"train: {processes.count} processes, each with a share of every batch")
    with read_scorable(config.input, ("responses",)) as examples:
        _check_trainable(examples, config)
        if processes.is_first:
            with open_output(work.out / "training.jsonl", step_meta("train", config, input=examples.entry)) as log:
                summary = _finished(config, examples, replace(work, log=log))
        else:
            summary = _finished(config, examples, work)
    leave_processes(processes)
    return summary


@dataclass(frozen=True)
class Work:
    """Where the step writes and what it says: the log only in the first of several processes."""

    out: Path
    log: StepOutput | None
    console: Console
    processes: Processes


def _finished(config: TrainConfig, examples: Source, work: Work) -> Summary:
    """The summary, of earlier or of now; empty but in the first process."""
    if work.processes.from_first(work.log is not None and work.log.finished):
        return {} if work.log is None else work.log.summary
    summary = _train(config, examples, work)
    if work.log is not None:
        work.log.finish(summary)
        shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    return summary


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


def _train(config: TrainConfig, examples: Source, work: Work) -> Summary:
    out, console = work.out, work.console
    set_seed(config.seed)
    dtype = _weight_dtype(config)
    source = ModelSource(config.model, config.device, dtype, config.trust_remote_code, config.threads, config.quantize)
    model, tokenizer = load_model(source, trainable=True)
    renderer = Renderer(tokenizer, config.model, config.thinking)
    room = min(config.max_length or 1 << 30, context_length(model))
    with on_disk(out) as fitting, on_disk(out) as anew:
        _render(examples, renderer, room, config, fitting)
        _say_left_out(len(examples), len(fitting), room, config, console)
        model = _trainable(model, config)
        longest = max(preference.longest for preference in fitting)
        policy = Policy(model, longest, _objective(config, source, causal_lm(model)), console.say, work.processes)
        with policy.forward:
            if policy.forward.unpacked_because:
                console.say(f"train: no packed rows, because {policy.forward.unpacked_because}")
            preferences, origin = _with_reference(policy, fitting, anew, config, console)
            train, validation = _split(preferences, config)
            figures = _optimise(config, policy, train, validation, work)
    if work.processes.is_first:
        _save(model, config, source, out)
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


# Model and reference


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


def _with_reference(
    policy: Policy, preferences: PreferenceFile, anew: PreferenceFile, config: TrainConfig, console: Console
) -> tuple[PreferenceFile, str]:
    """The preferences with reference log-probabilities and where these come from; computed ones are put into `anew`."""
    if config.reference == "sample":
        drift = _drift(policy, preferences)
        if drift <= DRIFT:
            return preferences, "sample"
        found = "are missing" if math.isinf(drift) else f"differ by up to {drift:.2g} nats from the trainer's"
        console.say(f"train: the samples' own log-probs {found}; computing the reference anew")
    under = without_adapter(policy.model) if config.reference == "base" else nullcontext()
    with under, console.progress("reference", len(preferences), unit="prompt") as bar:
        for preference in policy.reference(preferences, at_once=32):
            anew.append(preference)
            bar.update()
    return anew, "base" if config.reference == "base" else "start"


def _drift(policy: Policy, preferences: PreferenceFile) -> float:
    """Largest difference of stored and computed log-probabilities on evenly spread prompts; inf for missing ones."""
    if any(math.isnan(logp) for preference in preferences for logp in preference.ref_logps):
        return math.inf
    spread = range(0, len(preferences), max(1, len(preferences) // CHECKED))
    checked = [preferences[index] for index in spread]
    computed = policy.reference(checked, at_once=CHECKED)
    pairs = zip(checked, computed, strict=True)
    return max(abs(a - b) for stored, own in pairs for a, b in zip(stored.ref_logps, own.ref_logps, strict=True))


# Optimisation


def _optimise(
    config: TrainConfig,
    policy: Policy,
    train: Subset[Preference],
    validation: Subset[Preference],
    work: Work,
) -> dict[str, Any]:
    out, log = work.out, work.log
    steps = math.ceil(len(train) / config.batch_size) * config.epochs
    micro_batch = _micro_batch(config, policy, train, work.console)
    arguments = _arguments(config, policy, out, steps, micro_batch, len(validation) > 0)
    with work.console.progress("train", steps, unit="step") as bar:

        def on_log(step: int, record: Log) -> None:
            record = without_nan({name: value for name, value in record.items() if name not in UNUSABLE})
            kind = "validation" if "eval_loss" in record else "step" if "loss" in record else "total"
            key = f"{kind}-{step}"
            if log is not None and key not in log.done_ids:
                log.append([{"id": key, "kind": kind, "step": step} | record])
            bar.update(step - bar.n)

        trainer = PreferenceTrainer(policy, train, validation, arguments, on_log)
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


def _micro_batch(config: TrainConfig, policy: Policy, train: Subset[Preference], console: Console) -> int:
    """Prompts of one backward pass of all processes, as many as the memory takes; says what the training will need."""
    sizes = array("Q", (train[index].tree.num_tokens for index in range(len(train))))
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

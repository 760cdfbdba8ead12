"""One student trained by selective on-policy distillation, from settings: weights out, and what every step did."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import DistillationConfig

from teachdiag.artefacts.trained import DESCRIBED
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.processes.group import processes
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.errors import SettingsError, cause
from teachdiag.progress import Advance, Reporter
from teachdiag.seeds import derive_seed
from teachdiag.settings import TrainSettings
from teachdiag.settings.base import fits, in_words, shown
from teachdiag.sweeps import Cell

Row = dict[str, Any]
_LOGGED = {  # columns of train_steps by the names that the trainer logs
    **{f"{name}_{part}": f"selection/{name}_{part}" for name in DESCRIBED for part in ("kept", "dropped")},
    **{name: f"selection/{name}" for name in ("keep", "tied", "topped_up", "sequences_touched")},
    **{name: f"selection/{name}" for name in ("ends_kept", "saturated", "update_norm")},
    **{"loss": "loss", "gradient_norm": "grad_norm", "learning_rate": "learning_rate"},
    **{"rollout_length": "completions/mean_length", "rollouts_cut": "completions/clipped_ratio"},
}


def distil(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    cell: Cell,
    folder: Path,
    scratch: Path,
    reporter: Reporter,
) -> list[Row]:
    """Train the pair's student, or a fresh adapter on it, in place, and save what was trained.

    Args:
        pair: student with float32 weights, and teacher.
        prompts: token ids of the prompts to train on; their order is drawn from the cell's seed.
        cell: how to train.
        folder: where the student's weights, or the adapter's, and the tokenizer go.
        scratch: where checkpoints go, and from where an interrupted training continues.
        reporter: progress; told where a mask is degenerate.

    Returns:
        One row a step, the columns of `train_steps` without arm, budget and seed.

    Raises:
        SettingsError: TRL refuses the settings, or fails with those of --trl.
        ContextError: a model gives NaN.
    """
    settings, adapter = cell.settings, cell.settings.adapter
    with (
        reporter.bar(f"Training {cell.name}", total=settings.steps) as advance,
        warnings.catch_warnings(),
        _told(settings),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # TRL 1.16 calls transformers by names that v6 drops
        _state_one_size(pair)
        trainer = SelectiveDistillationTrainer(
            model=pair.student.model,
            teacher_model=pair.teacher.model,
            args=_arguments(settings, scratch),
            train_dataset=_dataset(prompts, settings),
            processing_class=pair.student.tokenizer,
            callbacks=[_Progress(advance)],
            peft_config=LoraConfig(**adapter.options, task_type="CAUSAL_LM") if adapter else None,
            selection=cell.selection,
            loss=settings.loss,
            jsd_beta=settings.jsd_beta,
            loss_mean=settings.loss_mean,
            tile_positions=settings.tile_positions,
            rollout_seed=derive_seed(settings.seed, "train"),
            reporter=reporter,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(scratch)) if scratch.is_dir() else None)
    trainer.save_model(str(folder))
    return [_row(logged) for logged in trainer.state.log_history if "selection/keep" in logged]


@contextmanager
def _told(settings: TrainSettings) -> Iterator[None]:
    """Where --trl sets something, say so of what TRL, transformers and torch raise at values that they dislike.

    Raises:
        SettingsError: they raised; without --trl, it is no fault of the settings, and stays what it is.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not settings.trl_settings or isinstance(error, torch.OutOfMemoryError):
            raise
        raise SettingsError(
            f"training fails with --trl {shown(settings.trl)}: {type(error).__name__}: {cause(error)}"
        ) from error


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Moves our bar instead of TRL's."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.advance(state.global_step - self.done)
        self.done = state.global_step


def _arguments(settings: TrainSettings, scratch: Path) -> Any:  # noqa: ANN401 (a TRL class)
    """Our settings in TRL's words.

    Raises:
        SettingsError: the batch cannot be divided over the processes, or TRL knows no such setting.
    """
    together = settings.micro_batch * processes().num_processes
    if settings.batch % together:
        raise SettingsError(
            f"--batch {settings.batch} cannot be divided over {processes().num_processes} processes with "
            f"--micro-batch {settings.micro_batch}: make it a multiple of {together}"
        )
    ours = {
        "output_dir": str(scratch),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.batch // together,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip_norm,
        "max_completion_length": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": derive_seed(settings.seed, "trl") % 2**31,
        "shuffle_dataset": False,
        "bf16": settings.dtype == "bfloat16",
        "fp16": settings.dtype == "float16",
        "use_cpu": not torch.cuda.is_available() or settings.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 1,
        "report_to": settings.report_to,
        "disable_tqdm": True,
    }
    theirs, hints = settings.trl_settings, get_type_hints(DistillationConfig)
    for name, value in theirs.items():
        if name not in hints:
            near = get_close_matches(name, hints)
            meant = f"did you mean {near[0]}?" if near else "see trl.DistillationConfig for those that there are"
            raise SettingsError(f"--trl sets {name}, which TRL {version('trl')} does not know: {meant}")
        if not fits(value, hints[name]):
            raise SettingsError(f"--trl sets {name} to {shown(value)}: it must be {in_words(hints[name])}")
    try:
        return DistillationConfig(**ours | theirs)
    except Exception as error:  # whatever TRL, transformers and accelerate raise at values that they dislike
        raise SettingsError(f"TRL refuses the settings: {cause(error)}") from error


def check_arguments(settings: TrainSettings) -> None:
    """Refuse what TRL would refuse, before any model is loaded.

    Raises:
        SettingsError: the message names the option; or a single process sees several GPUs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as below
        gpus = _arguments(settings, Path("scratch")).n_gpu
    if gpus > 1:
        raise SettingsError(
            f"one process sees {gpus} GPUs, and trains on one: set CUDA_VISIBLE_DEVICES to that one, or start one "
            "process a GPU by `accelerate launch` or `torchrun`"
        )


def _dataset(prompts: Sequence[Sequence[int]], settings: TrainSettings) -> Dataset:
    """The prompts of every step in their order, as token ids: rendered as those are on which the student is judged.

    All steps are laid out, each pass over the prompts in an order of its own, so that a training that was interrupted
    goes on with the very prompts that it would have met.
    """
    passes = math.ceil(settings.steps * settings.batch / len(prompts))
    streams = (np.random.default_rng(derive_seed(settings.seed, "order", number)) for number in range(passes))
    order = np.concatenate([rng.permutation(len(prompts)) for rng in streams])
    return Dataset.from_dict({"prompt": [list(prompts[index]) for index in order[: settings.steps * settings.batch]]})


def _state_one_size(pair: Pair) -> None:
    """Let the teacher's configuration name the student's head size, or TRL refuses heads with unequal padding.

    Our losses cut both heads to the ids that the tokenizer knows; the student is saved with the rows that it came with.
    """
    student, teacher = (model.model.config.get_text_config() for model in (pair.student, pair.teacher))
    teacher.vocab_size = student.vocab_size


def _row(logged: dict[str, Any]) -> Row:
    """One step's row; what was not defined in it is null."""
    values = {column: logged.get(name) for column, name in _LOGGED.items()}
    known = {column: None if value is None or math.isnan(value) else float(value) for column, value in values.items()}
    return {"step": int(logged["step"])} | known

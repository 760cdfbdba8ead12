"""Stage train: selective on-policy distillation of one student, or of a sweep, judged on held-out prompts.

Each student is a cell: what it was trained with, its `train_steps`, its `eval_scores`. Both tables have one shard a
cell, so that an interrupted stage goes on at the next unfinished one.
"""

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from teachdiag.artefacts import TRAIN_STEPS
from teachdiag.diagnostics.contexts.sampling import check_candidates, check_prompts_fit
from teachdiag.diagnostics.contexts.templates import encode_prompts
from teachdiag.diagnostics.evaluate import Benchmark, evaluate_model, refuse_beside, resolve_benchmark, shares
from teachdiag.diagnostics.models.adapters import in_shape
from teachdiag.diagnostics.models.pair import (
    PairOutline,
    adapted,
    load_pair,
    outline_pair,
    pinned,
    refuse_nothing_to_learn,
    resolve_pair,
)
from teachdiag.diagnostics.models.sources import ModelSource, Sources, resolve
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.devices import machine_facts, process_device
from teachdiag.diagnostics.processes.group import is_first, many
from teachdiag.diagnostics.processes.shared_stage import SharedStage, agree
from teachdiag.diagnostics.training.distillation import check_arguments, distil
from teachdiag.errors import SettingsError
from teachdiag.manifests import read_manifest
from teachdiag.progress import Reporter
from teachdiag.prompts import load_prompts
from teachdiag.runs import end_with_parent
from teachdiag.settings import TrainSettings
from teachdiag.sweeps import BASE, TEACHER, Cell, plan
from teachdiag.tables import is_intact, refuse_strays, write_shard


@dataclass(frozen=True)
class Experiment:
    """What every cell of a stage shares; it can be sent to another process.

    Attributes:
        run: the run directory.
        settings: of the whole stage.
        sources: student and teacher.
        benchmark: the held-out prompts, on which every model is judged.
        device: where models are loaded and answer.
        end_ids: tokens that end a rollout; they end an answer too, beside a model's own.
    """

    run: Path
    settings: TrainSettings
    sources: Sources
    benchmark: Benchmark
    device: str
    end_ids: frozenset[int]

    def train_prompts(self, tokenizer: Any, reporter: Reporter | None = None) -> list[tuple[int, ...]]:  # noqa: ANN401
        """Token ids of the prompts to train on, rendered as the held-out ones are."""
        settings, prompts = self.settings, self.benchmark.prompts
        _, drawn = prompts.draw(settings.eval_prompts, settings.train_prompts, settings.prompt_seed)
        named = [(prompt.prompt_id, prompts.manifest.student_messages(prompt)) for prompt in drawn]
        return encode_prompts(tokenizer, named, self.benchmark.options, reporter)

    def scores(self, name: str) -> Path:
        """Path of a model's answers."""
        return self.run / "eval_scores" / f"{name}.parquet"

    def steps(self, name: str) -> Path:
        """Path of the steps of a cell."""
        return self.run / "train_steps" / f"{name}.parquet"


def run_train(run: Path, settings: TrainSettings, reporter: Reporter) -> dict[str, Any]:
    """Train and judge every cell, with the base student and the teacher beside them; continue where it stopped.

    Works under `accelerate launch` and `torchrun`: the first process writes, all of them train and answer.

    Returns:
        The stage's summary: for each model the shares of right and unparseable answers.

    Raises:
        InputError: anything that the user can mend; finished cells stay as they are.
    """
    cells = plan(settings)
    agree(settings.as_dict())
    for cell in cells:
        check_arguments(cell.settings)
    if settings.workers > 1 and many():
        raise SettingsError(f"--workers {settings.workers}: cells are trained side by side, or by several processes")
    stage = SharedStage(run, "train", tables=("train_steps", "eval_scores"), scratch="scratch/train")
    with stage.held():
        refuse_beside(run, "evaluate")
        # Prompts and devices before models, which may be fetched or made: a typo costs nothing.
        device = process_device(settings.device)
        prompts = on_first(load_prompts)(read_manifest(settings.prompts), settings.data_file)
        sources = on_first(resolve_pair)(settings, reporter)
        refuse_nothing_to_learn(sources, "same", same_prompts=True)
        pair = outline_pair(sources, reporter)  # refuses a pair that shares no vocabulary
        for cell in cells:
            check_candidates(cell.settings.top_k, pair.known.count)
            in_shape(sources[0], cell.settings.adapter)  # refuses an adapter that has nowhere to go
        tokenizers = {model.name: model.tokenizer for model in (pair.student, pair.teacher)}
        benchmark = on_first(resolve_benchmark)(stage, settings, prompts, tokenizers, reporter)
        experiment = Experiment(run, settings, sources, benchmark, device, pair.student.end_ids)
        inputs = on_first(_inputs)(experiment, cells, pair, reporter)
        if stage.claim(_recorded(settings), inputs, machine_facts(device)):
            reporter.say(f"{run}: training is complete")
            return dict(stage.require()["results"])
        unfinished = _unfinished(experiment, cells)
        with stage.timed():
            for arm, source in zip((BASE, TEACHER), sources, strict=True):
                _evaluate(experiment, source, arm, {"arm": arm, "budget": None, "seed": None}, reporter)
            _train(experiment, unfinished, reporter)
            results = {"models": shares(run)}
            stage.complete(results)
    return results


def train_cell(experiment: Experiment, cell: Cell, reporter: Reporter) -> None:
    """Train one student, save it, load it again, let it answer; its shards are written last."""
    students, scratch = experiment.run / "students" / cell.name, experiment.run / "scratch/train" / cell.name
    device = "cpu" if many() else experiment.device  # accelerate places the models, or shards them, from the CPU
    pair = load_pair(experiment.sources, cell.settings.dtype, device, master=True)
    steps = distil(pair, experiment.train_prompts(pair.student.tokenizer), cell, students, scratch, reporter)
    del pair
    gc.collect()  # the trainer, which holds itself: its memory is wanted by the model that is judged, and by the next
    columns = {"arm": cell.arm, "budget": cell.budget, "seed": cell.settings.seed}
    trained = _finish_training(experiment, cell, [step | columns for step in steps], students, reporter)
    _evaluate(experiment, trained, cell.name, columns, reporter)
    if is_first():
        shutil.rmtree(scratch, ignore_errors=True)
        if not experiment.settings.keep:
            shutil.rmtree(students)


@on_first
def _finish_training(
    experiment: Experiment, cell: Cell, steps: Sequence[Mapping[str, Any]], students: Path, reporter: Reporter
) -> ModelSource:
    """Write what every step did; return the student that came of it."""
    table = TRAIN_STEPS.build_rows(steps)
    experiment.scores(cell.name).unlink(missing_ok=True)  # of a student that is no more
    write_shard(table, experiment.steps(cell.name))
    if cell.settings.adapter:
        return adapted(experiment.sources[0], str(students), reporter)
    return resolve(str(students), "", (), reporter, experiment.settings.trust_remote_code)


def _evaluate(
    experiment: Experiment, source: ModelSource, name: str, columns: dict[str, Any], reporter: Reporter
) -> None:
    """Let a model answer the held-out prompts, unless it has."""
    path, ends = experiment.scores(name), experiment.end_ids
    evaluate_model(experiment.benchmark, source, experiment.device, path, name, columns, reporter, ends)


def _train(experiment: Experiment, cells: Sequence[Cell], reporter: Reporter) -> None:
    """Train the cells one after the other, or several side by side; the first error is raised when all have ended."""
    if len(cells) == 1:
        train_cell(experiment, cells[0], reporter)
        return
    with reporter.bar("Students", total=len(cells)) as advance:
        for _ in _trained(experiment, cells, reporter):
            advance()


def _trained(experiment: Experiment, cells: Sequence[Cell], reporter: Reporter) -> Iterator[None]:
    """Yield whenever a cell is finished."""
    workers = min(experiment.settings.workers, len(cells))
    if workers == 1:
        for cell in cells:
            train_cell(experiment, cell, reporter.inside(cell.name))
            yield
        return
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (threads,)) as pool:
        futures = [pool.submit(train_cell, experiment, cell, reporter.inside(cell.name)) for cell in cells]
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # those that are under way come to their end
            yield future.result()


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    end_with_parent()


@on_first
def _unfinished(experiment: Experiment, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells whose steps and answers are still to be made; refuses shards of cells that there are not.

    Raises:
        RunError: there is such a shard.
    """
    names = [cell.name for cell in cells]
    refuse_strays(experiment.run / "train_steps", map(experiment.steps, names))
    refuse_strays(experiment.run / "eval_scores", map(experiment.scores, (BASE, TEACHER, *names)))
    return [c for c in cells if not (is_intact(experiment.steps(c.name)) and is_intact(experiment.scores(c.name)))]


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """Every setting that a number can depend on; a sweep's arms stand among the inputs."""
    recorded = settings.as_dict()
    for name in ("sweep", "workers", "report_to", "save_steps"):
        del recorded[name]
    return recorded


def _inputs(experiment: Experiment, cells: Sequence[Cell], pair: PairOutline, reporter: Reporter) -> dict[str, Any]:
    """What goes into the stage; refuses prompts that leave a model no room for a rollout, or for an answer.

    Raises:
        ContextError: there is one, or one cannot be rendered.
    """
    settings, benchmark = experiment.settings, experiment.benchmark
    train_prompts = experiment.train_prompts(pair.student.tokenizer, reporter)
    _, drawn = benchmark.prompts.draw(settings.eval_prompts, settings.train_prompts, settings.prompt_seed)
    named = list(zip((prompt.prompt_id for prompt in drawn), train_prompts, strict=True))
    rollout = max(cell.settings.max_new_tokens for cell in cells)
    rendered = list(train_prompts)
    for model in (pair.student, pair.teacher):
        check_prompts_fit(named, model, rollout)
        rendered += benchmark.fitting(model)
    return {
        "student": pinned(experiment.sources[0]),
        "teacher": pinned(experiment.sources[1]),
        "prompts": benchmark.facts(rendered),
        "cells": {cell.name: _recorded(cell.settings) for cell in cells},
    }

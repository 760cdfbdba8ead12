"""Stage train: selective on-policy distillation of one student, or of a sweep, judged on held-out prompts.

Each student is a cell: what it was trained with, its `train_steps`, its `eval_scores`. Both tables have one shard a
cell, so that an interrupted stage goes on at the next unfinished one.
"""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from teachdiag.artefacts import TRAIN_STEPS
from teachdiag.diagnostics.contexts.doubts import say_without_template
from teachdiag.diagnostics.contexts.sampling import check_candidates, check_prompts_fit
from teachdiag.diagnostics.contexts.templates import encode_prompts, recorded_options, resolve_options
from teachdiag.diagnostics.evaluate import Examination, examination, refuse_beside, shares, write_scores
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import (
    PairOutline,
    load_pair,
    outline_pair,
    pinned,
    refuse_nothing_to_learn,
    resolve_pair,
)
from teachdiag.diagnostics.models.sources import ModelSource, Sources, resolve
from teachdiag.diagnostics.processes.devices import machine_facts, pick_device
from teachdiag.diagnostics.processes.ranks import agree, is_first, many, on_first, timed_by_first, writing_first
from teachdiag.diagnostics.training.distillation import check_arguments, distil
from teachdiag.errors import SettingsError
from teachdiag.manifests import read_manifest
from teachdiag.progress import Reporter
from teachdiag.prompts import PromptSet, load_prompts, say_contradictory
from teachdiag.runs import Stage, end_with_parent
from teachdiag.settings import TrainSettings
from teachdiag.sweeps import BASE, TEACHER, Cell, plan
from teachdiag.tables import is_intact, refuse_strays, write_shard


@dataclass(frozen=True)
class Classroom:
    """What every cell of a stage shares; it can be sent to another process."""

    run: Path
    settings: TrainSettings
    sources: Sources
    exam: Examination
    device: str
    ends: frozenset[int]  # of rollouts; beside its own, of every model's answers

    def lessons(self, tokenizer: Any, reporter: Reporter | None = None) -> list[tuple[int, ...]]:  # noqa: ANN401
        """Token ids of the prompts to train on, rendered as the held-out ones are."""
        settings, prompts = self.settings, self.exam.prompts
        _, drawn = prompts.draw(settings.eval_prompts, settings.train_prompts, settings.prompt_seed)
        named = [(prompt.prompt_id, prompts.manifest.student_messages(prompt)) for prompt in drawn]
        return encode_prompts(tokenizer, named, self.exam.options, reporter)

    def scores(self, name: str) -> Path:
        """Where a model's answers lie."""
        return self.run / "eval_scores" / f"{name}.parquet"

    def steps(self, name: str) -> Path:
        """Where the steps of a cell lie."""
        return self.run / "train_steps" / f"{name}.parquet"

    def finished(self, cell: Cell) -> bool:
        """Whether a cell's steps and answers are there as they were written."""
        return is_intact(self.steps(cell.name)) and is_intact(self.scores(cell.name))


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
    heard = reporter if is_first() else Reporter(quiet=True)
    stage = Stage(run, "train", tables=("train_steps", "eval_scores"), scratch="scratch/train")
    with writing_first(run):
        on_first(lambda: refuse_beside(run, "evaluate"))
        # Prompts and devices before models, which may be fetched or made: a typo costs nothing.
        device = pick_device(settings.device)
        prompts = on_first(lambda: load_prompts(read_manifest(settings.prompts), settings.data_file))
        sources = on_first(lambda: resolve_pair(settings, heard))
        refuse_nothing_to_learn(sources, "same", same_prompts=True)
        pair = outline_pair(sources, heard)  # refuses a pair that shares no vocabulary
        for cell in cells:
            check_candidates(cell.settings.top_k, pair.known.count)
        exam = on_first(lambda: _examination(stage, settings, prompts, pair, heard))
        room = Classroom(run, settings, sources, exam, device, pair.student.end_ids)
        inputs = on_first(lambda: _inputs(room, cells, pair, heard))
        if on_first(lambda: stage.claim(_recorded(settings), inputs, machine_facts(room.device))):
            heard.say(f"{run}: training is complete")
            return dict(on_first(stage.require)["results"])
        on_first(lambda: _refuse_strays(room, cells))
        with timed_by_first(stage):
            for arm, source in ((BASE, room.sources[0]), (TEACHER, room.sources[1])):
                _judge(room, source, arm, heard)
            _train(room, on_first(lambda: [cell for cell in cells if not room.finished(cell)]), heard)
            results = {"models": on_first(lambda: shares(run))}
            on_first(lambda: stage.complete(results))
    return results


def train_cell(room: Classroom, cell: Cell, reporter: Reporter) -> None:
    """Train one student, save it, load it again, let it answer; its shards are written last."""
    folder, scratch = room.run / "students" / cell.name, room.run / "scratch/train" / cell.name
    together = many()  # then accelerate places the models, or shards them, from the CPU
    device = "cpu" if together else room.device
    pair = load_pair(room.sources, cell.settings.dtype, device, master=True)
    steps = distil(pair, room.lessons(pair.student.tokenizer), cell, folder, scratch, reporter)
    del pair
    if is_first():
        named = {"arm": cell.arm, "budget": cell.budget, "seed": cell.settings.seed}
        table = TRAIN_STEPS.build_rows([named | step for step in steps])
        room.scores(cell.name).unlink(missing_ok=True)  # of a student that is no more
        write_shard(table, room.steps(cell.name))
    trusted = room.settings.trust_remote_code
    _judge(room, on_first(lambda: resolve(str(folder), "", (), reporter, trusted)), cell.arm, reporter, cell)
    if is_first():
        shutil.rmtree(scratch, ignore_errors=True)
        if not room.settings.keep:
            shutil.rmtree(folder)


def _train(room: Classroom, cells: Sequence[Cell], reporter: Reporter) -> None:
    """Train the cells one after the other, or several side by side; the first error is raised when all have ended."""
    if len(cells) == 1:
        train_cell(room, cells[0], reporter)
        return
    with reporter.bar("Students", total=len(cells)) as advance:
        for _ in _trained(room, cells, reporter):
            advance()


def _trained(room: Classroom, cells: Sequence[Cell], reporter: Reporter) -> Iterator[None]:
    """Yield whenever a cell is finished."""
    workers = min(room.settings.workers, len(cells))
    if workers == 1:
        for cell in cells:
            train_cell(room, cell, reporter.inside(cell.name))
            yield
        return
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (threads,)) as pool:
        futures = [pool.submit(train_cell, room, cell, reporter.inside(cell.name)) for cell in cells]
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # those that are under way come to their end
            yield future.result()


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    end_with_parent()


def _judge(room: Classroom, source: ModelSource, arm: str, reporter: Reporter, cell: Cell | None = None) -> None:
    """Let a model answer, unless it has."""
    path = room.scores(cell.name if cell else arm)
    if on_first(lambda: is_intact(path)):
        return
    model = load(source, room.settings.dtype, room.device)
    model.end_with(model.end_ids | room.ends)
    rows = room.exam.answers(model, reporter, cell.name if cell else arm)
    if is_first():
        write_scores(rows, path, arm, *((cell.budget, cell.settings.seed) if cell else ()))


def _refuse_strays(room: Classroom, cells: Sequence[Cell]) -> None:
    names = [cell.name for cell in cells]
    refuse_strays(room.run / "train_steps", map(room.steps, names))
    refuse_strays(room.run / "eval_scores", map(room.scores, (BASE, TEACHER, *names)))


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """Every setting that a number can depend on; a sweep's arms stand among the inputs."""
    recorded = settings.as_dict()
    for name in ("sweep", "workers", "report_to", "save_steps"):
        del recorded[name]
    return recorded


def _examination(
    stage: Stage, settings: TrainSettings, prompts: PromptSet, pair: PairOutline, reporter: Reporter
) -> Examination:
    """Draw the held-out prompts, rendered as the prompts to train on; refuses what cannot be graded.

    Raises:
        InputError: as `resolve_options` and `examination`.
    """
    speakers = {model.name: model.tokenizer for model in (pair.student, pair.teacher)}
    say_contradictory(prompts, reporter)
    for name, tokenizer in speakers.items():
        say_without_template(name, tokenizer, reporter)
    defaults, before = prompts.manifest.template_options, recorded_options(stage, settings)
    options = resolve_options(settings.template_options, speakers, defaults, before, reporter)
    return examination(settings, prompts, options)


def _inputs(room: Classroom, cells: Sequence[Cell], pair: PairOutline, reporter: Reporter) -> dict[str, Any]:
    """What goes into the stage; refuses prompts that leave a model no room for a rollout, or for an answer.

    Raises:
        ContextError: there is one, or one cannot be rendered.
    """
    settings, exam = room.settings, room.exam
    lessons = room.lessons(pair.student.tokenizer, reporter)
    _, drawn = exam.prompts.draw(settings.eval_prompts, settings.train_prompts, settings.prompt_seed)
    named = list(zip((prompt.prompt_id for prompt in drawn), lessons, strict=True))
    rollout = max(cell.settings.max_new_tokens for cell in cells)
    rendered = list(lessons)
    for model in (pair.student, pair.teacher):
        check_prompts_fit(named, model, rollout)
        rendered += exam.fitting(model)
    return {
        "student": pinned(room.sources[0]),
        "teacher": pinned(room.sources[1]),
        "prompts": exam.facts(rendered),
        "cells": {cell.name: _recorded(cell.settings) for cell in cells},
    }

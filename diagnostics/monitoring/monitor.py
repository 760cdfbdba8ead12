"""`teachdiag.Monitor`: what is left to be learned, looked at every few steps of somebody else's training."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from teachdiag.artefacts.monitored import CANARY, CANARY_POSITIONS, LIVE, MONITOR
from teachdiag.diagnostics.models.alignment import KEY, Batch
from teachdiag.diagnostics.monitoring.alarms import alarms
from teachdiag.diagnostics.monitoring.bank import Canary, load_canary
from teachdiag.diagnostics.monitoring.in_training import ModelInTraining, contexts_of
from teachdiag.diagnostics.monitoring.observation import (
    EXTRA,
    Numbers,
    Scales,
    at_tokens,
    averaged,
    gain_since,
    observe,
    summarised,
)
from teachdiag.diagnostics.processes.devices import pick_device
from teachdiag.diagnostics.scoring.positions_table import position_rows
from teachdiag.diagnostics.scoring.tiles import Columns, States
from teachdiag.errors import RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.tables import shard_files, write_parquet

if TYPE_CHECKING:
    from transformers import Trainer

    from teachdiag.diagnostics.monitoring.callback import MonitorCallback

Head = Callable[[Tensor], Tensor]
_SAME = ("context_id", "position", "token_id")  # of the canary at every look
_FIRST = (*_SAME, "forward_kl", "disagreement_k16", "compatibility_k16")  # what later looks are read beside
_TOLD, _MUCH, _SURELY = 8, 1.0, 4.0  # tokens, nats a token and standard errors from which rows are told to be shifted
_ROUNDED = 1e-3  # nats by which bfloat16 and log-sum-exp may lift a log-probability above 0
_LOGGED = tuple(c.name for c in MONITOR.columns if pa.types.is_floating(c.type))


class Monitor:
    """Looks at a training every few steps: at contexts that never change (the canary), and at the live batch.

    Every look is a row of the table `monitor`, and for the canary its positions, with the statistics of capture, in the
    table `canary`; both lie in `folder`, one file a step, each written whole or not at all. A training that is resumed
    goes on in the same folder, and writes over the looks that the interrupted one took at later steps when it comes to
    them. What looks wrong is said once, and named in the row.
    """

    def __init__(
        self,
        folder: str | Path,
        canary: str | Path | None = None,
        *,
        every: int = 25,
        contexts: int = 16,
        positions: int = 64,
        sequences: int = 4,
        end_ids: Sequence[int] = (),
        tile_positions: int = 256,
        device: str = "auto",
        log: Callable[[dict[str, float]], object] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Read the canary's contexts, and let their teacher read them, once.

        Args:
            folder: where the tables go.
            canary: a run whose bank was captured with this student and teacher; None looks at live batches alone.
            every: steps between two looks.
            contexts: contexts of the canary.
            positions: response positions of each, at most.
            sequences: sequences of a live batch that are looked at, where the monitor scores them itself.
            end_ids: tokens that end a text; by default those of the canary's student, or of the model whose trainer is
                attached. Without any, masses on the end of the text are unknown.
            tile_positions: positions whose logits exist at the same time.
            device: torch device on which the canary's teacher reads; 'auto' is cuda where there is one.
            log: told the numbers of every look, by names such as 'teachdiag/canary/forward_kl'; `attach` tells the
                trainer's loggers itself.
            reporter: says what looks wrong.

        Raises:
            InputError: the run has no such bank, or its teacher cannot be loaded.
        """
        counts = {"every": every, "contexts": contexts, "positions": positions, "sequences": sequences}
        for name, value in counts.items():
            if value < 1:
                raise SettingsError(f"Monitor({name}={value}): it must be at least 1")
        self.folder, self.every, self.sequences = Path(folder), every, sequences
        self.reporter, self.log = reporter or Reporter(), log
        self._tile = tile_positions
        self.canary: Canary | None = None
        if canary is not None:
            self.canary = load_canary(Path(canary), contexts, positions, pick_device(device), self.reporter)
        self.end_ids = tuple(end_ids) or (self.canary.end_ids if self.canary else ())
        self._rows: dict[str, list[dict[str, Any]]] = {CANARY: [], LIVE: []}
        self._said: dict[str, set[str]] = {CANARY: set(), LIVE: set()}
        for file in shard_files(self.folder / MONITOR.folder):
            for row in MONITOR.read_arrow(file).to_pylist():
                self._rows[row["population"]].append(dict.fromkeys(MONITOR.schema.names) | row)
        self._first = self._first_positions()

    def due(self, step: int) -> bool:
        """Whether a step is one that is looked at: 0 and every so many."""
        return step % self.every == 0

    def looked_at(self, population: str) -> list[int]:
        """Steps at which the 'canary' or 'live' batches were looked at, ascending."""
        return [row["step"] for row in self._rows[population]]

    def observe_batch(
        self,
        step: int,
        student: Tensor,
        teacher: Tensor,
        token_ids: Tensor,
        mask: Tensor,
        *,
        student_head: Head | None = None,
        teacher_head: Head | None = None,
        update_norm: float | None = None,
    ) -> dict[str, float]:
        """Look at a live batch: for loops that are written by hand.

        Row t of both models predicts token t: where `logits[:, t]` predicts `ids[:, t + 1]`, give `logits[:, :-1]`,
        `ids[:, 1:]` and `mask[:, 1:]`.

        Args:
            step: optimizer steps taken.
            student: logits, shape (sequences, length, vocabulary), or hidden states, shape (.., .., width), with
                `student_head`.
            teacher: the same of the teacher.
            token_ids: tokens that the student drew from these rows, shape (sequences, length).
            mask: true at the student's own tokens, of that shape; others are not looked at.
            student_head: makes logits, (rows, vocabulary), of hidden states, (rows, width), such as `model.lm_head`.
            teacher_head: the same for the teacher.
            update_norm: length of the last optimizer step, where it is known.

        Returns:
            Numbers by name, such as 'teachdiag/live/forward_kl', which `log` is told too; none that is not finite.

        Raises:
            SettingsError: shapes do not fit, the mask holds more than 0 and 1, no token is the student's own, or, at
                the first look, rows predict the token behind theirs.
        """
        scored = _scored(mask)
        _check_shapes(student, teacher, token_ids, scored, student_head is None, teacher_head is None)
        if not self._rows[LIVE]:
            _refuse_shifted(student, token_ids, scored, student_head, self._tile)
        with self._timed() as took, torch.no_grad():
            rows = scored.nonzero()[:, 0]
            ours, theirs = student[scored], teacher[scored]
            states = States(ours, _head(student_head), theirs, _head(teacher_head))
            columns = observe(states, token_ids[scored].long(), self.end_ids, self._tile)
            if student_head is not None:
                columns["hidden_norm_sq"] = ours.float().square().sum(-1).cpu().numpy()
        further: Numbers = {"length": _length(scored), "update_norm": update_norm}
        return self._record(step, LIVE, self._summarised(columns, rows.cpu().numpy()) | further, took())

    def observe_log_probs(self, step: int, student: Tensor, teacher: Tensor, mask: Tensor) -> dict[str, float]:
        """Look at a live batch of which no distributions are known, but the sampled tokens' log-probabilities.

        Of the row there are `log_ratio`, `shared_mass` and `length`; everything else is null.

        Args:
            step: optimizer steps taken.
            student: log-probability of each sampled token under the student, nats, shape (sequences, length).
            teacher: the same under the teacher.
            mask: true at the student's own tokens, of that shape; others are not looked at.

        Returns:
            Numbers by name, such as 'teachdiag/live/log_ratio', which `log` is told too; none that is not finite.

        Raises:
            SettingsError: shapes differ, the mask holds more than 0 and 1, no token is the student's own, or a
                log-probability is above 0.
        """
        scored = _scored(mask)
        if not student.shape == teacher.shape == scored.shape:
            shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, mask {tuple(scored.shape)}"
            raise SettingsError(f"{shapes}: all must be the same")
        with self._timed() as took:
            ours, theirs = (logp[scored].double().cpu().numpy() for logp in (student, teacher))
            for whose, logp in (("student", ours), ("teacher", theirs)):
                if (logp > _ROUNDED).any():
                    raise SettingsError(f"a log-probability of the {whose}'s is {logp.max():g}: none is above 0")
            numbers = averaged(at_tokens(ours, theirs), scored.nonzero()[:, 0].cpu().numpy())
        return self._record(step, LIVE, numbers | {"length": _length(scored)}, took())

    def observe_canary(self, step: int, model: Any, *, update_norm: float | None = None) -> dict[str, float]:  # noqa: ANN401
        """Look at the canary with a student's present weights.

        Args:
            step: optimizer steps taken.
            model: the student, a transformers causal language model, not wrapped; or a `ModelInTraining`.
            update_norm: length of the last optimizer step, where it is known.

        Returns:
            Numbers by name, such as 'teachdiag/canary/forward_kl'; none that is not finite.

        Raises:
            SettingsError: there is no canary, or the model's weights are sharded over processes.
            RunError: the folder holds looks at another canary.
        """
        if self.canary is None:
            raise SettingsError("this Monitor has no canary: Monitor(folder, canary=RUN) takes the bank of a run")
        student = model if isinstance(model, ModelInTraining) else ModelInTraining(model, self.canary.known)
        with self._timed() as took:
            looked = list(self._look_at(self.canary, student))
        columns = {name: np.concatenate([part[name] for _, part in looked]) for name in looked[0][1]}
        contexts = np.concatenate([batch.context_ids for batch, _ in looked])
        further: Numbers = {"update_norm": update_norm}
        if all(np.isfinite(values).all() for name, values in columns.items() if name not in EXTRA):
            stored = ((batch, {name: part[name] for name in part if name not in EXTRA}) for batch, part in looked)
            further |= self._keep(step, pa.concat_tables(position_rows(*part) for part in stored).sort_by(KEY))
        return self._record(step, CANARY, self._summarised(columns, contexts) | further, took())

    def observe_trainer_batch(
        self, step: int, student: ModelInTraining, teacher: ModelInTraining, batch: Mapping[str, Any]
    ) -> dict[str, float]:
        """Look at the first sequences of a trainer's batch, which both models read again.

        Args:
            step: optimizer steps taken.
            student: as it is now.
            teacher: the trainer's.
            batch: as `contexts_of` takes it.

        Raises:
            SettingsError: it is not such a batch.
        """
        contexts = contexts_of(batch, self.sequences)
        if not contexts:
            return {}
        with self._timed() as took, torch.no_grad():
            rows = Batch(tuple(contexts))
            ours, theirs = student.hidden_rows(rows, "student"), teacher.hidden_rows(rows, "teacher")
            states = States(ours, student.head, theirs, teacher.head)
            columns = self._observed(states, torch.from_numpy(rows.tokens))
        length: Numbers = {"length": rows.rows / len(contexts)}
        return self._record(step, LIVE, self._summarised(columns, rows.context_ids) | length, took())

    def attach(self, trainer: "Trainer") -> "MonitorCallback":
        """Look at a transformers or TRL trainer, and let its loggers have the numbers.

        The canary is looked at before the first step and every so many; the live batch too, if the trainer has a
        `teacher_model`.

        Args:
            trainer: before `train()`.

        Returns:
            The callback, a `transformers.TrainerCallback`, which the trainer has now.
        """
        from teachdiag.diagnostics.monitoring.callback import MonitorCallback

        callback = MonitorCallback(self, trainer)
        trainer.add_callback(callback)
        return callback

    def _look_at(self, canary: Canary, student: ModelInTraining) -> Iterator[tuple[Batch, Columns]]:
        head = student.head
        for batch, taught in zip(canary.batches, canary.states, strict=True):
            hidden = student.hidden_rows(batch, "student")
            states = States(hidden, head, taught.to(hidden.device), canary.head)
            yield batch, self._observed(states, torch.from_numpy(batch.tokens))

    def _observed(self, states: States, tokens: Tensor) -> Columns:
        """What is measured at N positions, from both models' hidden states there."""
        tokens = tokens.long().to(states.student.device)
        columns = observe(states, tokens, self.end_ids, self._tile)
        return columns | {"hidden_norm_sq": states.student.float().square().sum(-1).cpu().numpy()}

    def _keep(self, step: int, positions: pa.Table) -> Numbers:
        """Write the canary's positions, by (context_id, position); return what they gained since the first look."""
        numbered = positions.append_column("step", pa.array([step] * positions.num_rows, pa.int32()))
        there = [name for name in CANARY_POSITIONS.schema.names if name in numbered.column_names]
        table = CANARY_POSITIONS.build({name: numbered[name] for name in there})
        if self._first is None:
            self._first = _columns(table)
        if any(not np.array_equal(self._first[name], table[name].to_numpy()) for name in _SAME):
            raise RunError(f"{self.folder} holds looks at another canary: choose another folder")
        write_parquet(table, self._file(CANARY_POSITIONS.folder, step))
        contexts = table["context_id"].to_numpy()
        return gain_since(self._first["forward_kl"], table["forward_kl"].to_numpy(), contexts)

    def _summarised(self, columns: Columns, contexts: np.ndarray) -> Numbers:
        """One number of each column, by the scales of the canary's first look."""
        return summarised(columns, contexts, None if self._first is None else Scales.of(self._first))

    def _record(self, step: int, population: str, numbers: Numbers, seconds: float) -> dict[str, float]:
        """Write the row of a look, beside that of the other population at this step; say what looks wrong."""
        row: dict[str, Any] = dict.fromkeys(MONITOR.schema.names)
        row |= {"step": step, "population": population, "seconds": seconds} | numbers
        earlier = [old for old in self._rows[population] if old["step"] < step]  # of a training that was resumed
        self._rows[population] = [*earlier, row]
        wrong = alarms(self._rows[population])
        row["alarms"] = ",".join(wrong)
        for name in wrong.keys() - self._said[population]:
            self.reporter.say(f"step {step}, {population}: {name}: {wrong[name]}")
        self._said[population] = set(wrong)
        now = [rows[-1] for rows in self._rows.values() if rows and rows[-1]["step"] == step]
        write_parquet(MONITOR.build_rows(now), self._file(MONITOR.folder, step))
        told = {f"teachdiag/{population}/{name}": row[name] for name in _LOGGED if row[name] is not None}
        told |= {f"teachdiag/{population}/alarm/{name.replace(' ', '_')}": 1.0 for name in wrong}
        if self.log:
            self.log(told)
        return told

    def _first_positions(self) -> Columns | None:
        """What the canary was like when it was looked at first, by an earlier process."""
        files = shard_files(self.folder / CANARY_POSITIONS.folder)
        if not files:
            return None
        return _columns(CANARY_POSITIONS.read_arrow(files[0], _FIRST))

    def _file(self, folder: str, step: int) -> Path:
        path = self.folder / folder / f"step-{step:08d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def _timed(self) -> Iterator[Callable[[], float]]:
        """Yield what says, afterwards, how many seconds it took."""
        start, end = time.perf_counter(), 0.0
        try:
            yield lambda: end - start
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            end = time.perf_counter()


def _scored(mask: Tensor) -> Tensor:
    if not ((mask == 0) | (mask == 1)).all():
        raise SettingsError("the mask holds more than 0 and 1: make it of labels by `labels != -100`")
    if not mask.any():
        raise SettingsError("the mask is false everywhere: no token is the student's own")
    return mask.bool()


def _length(scored: Tensor) -> float:
    return float(scored.sum(1).float().mean())


def _check_shapes(
    student: Tensor, teacher: Tensor, token_ids: Tensor, scored: Tensor, student_logits: bool, teacher_logits: bool
) -> None:
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, token_ids {tuple(token_ids.shape)}"
    if not student.shape[:2] == teacher.shape[:2] == token_ids.shape == scored.shape:
        raise SettingsError(f"{shapes}, mask {tuple(scored.shape)}: sequences and lengths must be the same")
    if student_logits and teacher_logits and student.shape[2] != teacher.shape[2]:
        raise SettingsError(f"{shapes}: cut both models' logits to the ids that both know")


@torch.no_grad()
def _refuse_shifted(student: Tensor, token_ids: Tensor, scored: Tensor, head: Head | None, most: int) -> None:
    """Refuse rows that stand one place early, as a model gives them: the row in front tells each token far better."""
    sequence, before = (part[:most] for part in scored[:, 1:].nonzero(as_tuple=True))
    tokens = token_ids[sequence, before + 1].long()[:, None]
    early, there = (
        _head(head)(student[sequence, before + place]).log_softmax(-1).gather(-1, tokens)[:, 0] for place in (0, 1)
    )
    better = (early - there)[torch.isfinite(early - there)]
    if len(better) < _TOLD or not better.mean() > _MUCH + _SURELY * better.std() / len(better) ** 0.5:
        return
    raise SettingsError(
        f"the student's rows predict the token behind theirs: the row in front of a token gives it {better.mean():.1f} "
        "nats more than its own; where logits[:, t] predicts ids[:, t + 1], pass logits[:, :-1], ids[:, 1:] and "
        "mask[:, 1:]"
    )


def _head(head: Head | None) -> Any:  # noqa: ANN401 (a head as `States` has it)
    """A model's head in float32; logits, which need none, are taken as they are."""
    return (lambda rows: rows.float()) if head is None else (lambda rows: head(rows).float())


def _columns(table: pa.Table) -> Columns:
    return {name: table[name].to_numpy() for name in _FIRST}

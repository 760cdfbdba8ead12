"""What every kind of probe works with: the pair, the frozen contexts, the way back to theta0, shards to resume from.

Intermediate results lie under `scratch/` as shards, so that a killed probe continues; tables are made from them at the
end.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import KEY, Batch, Context, batched, in_shards, relaid
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.models.pair import outlined
from teachdiag.diagnostics.models.sharding import load_alone
from teachdiag.diagnostics.models.sources import Sources, outline
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.memory import refuse_what_cannot_fit
from teachdiag.diagnostics.probes.teacher_states import TeacherStates, compute_teacher_states, shared_file
from teachdiag.diagnostics.probes.theta0 import Theta0
from teachdiag.diagnostics.probes.trained import choose_weights
from teachdiag.diagnostics.probes.updates import Objective
from teachdiag.diagnostics.processes.collectives import gathered_rows, in_step, joined, on_first
from teachdiag.diagnostics.processes.group import in_share, share_of
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.tiles import States, rescore
from teachdiag.errors import RunError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.signals import positions_of
from teachdiag.tables import is_intact, read_parquet, shard_paths, write_shard

# What rounding may make of a position's KL between two passes at the same weights, mean and largest, in nats; another
# device or version makes more of it than another layout, whose share of the largest stays below 1e-4 in float32.
_ROUNDING: dict[str, tuple[float, float]] = {"float32": (1e-4, 1e-3), "float16": (4e-3, 0.05), "bfloat16": (0.03, 0.5)}
_FAR = 5.0  # times that, it is no rounding

Layout = Callable[[Sequence[Context]], list[Batch]]


@dataclass(frozen=True)
class ProbeSetup:
    """Everything one probe works with.

    Attributes:
        run: the run directory.
        probe_id: name of the probe.
        scratch: folder of what is needed only until the probe ends.
        settings: the probe's.
        capture: the settings that the run was captured with.
        student: float32 master weights, at theta0 unless something moved them.
        teacher_model: the teacher itself, where an update needs it again; else None.
        teacher: the teacher's states at every context below.
        theta0: the way back.
        bank: contexts on which gains are measured.
        update: contexts of the update split (or of the bank, where the update is on the bank).
        fix: contexts set aside from the update split, on which L_fix is measured.
        further: contexts that the kind of probe made beside the run's.
        reporter: progress.
    """

    run: Path
    probe_id: str
    scratch: Path
    settings: ProbeSettings
    capture: CaptureSettings
    student: LanguageModel
    teacher_model: LanguageModel | None
    teacher: TeacherStates
    theta0: Theta0
    bank: list[Context]
    update: list[Context]
    fix: list[Context]
    further: list[Context]
    reporter: Reporter

    def batched(self, contexts: Sequence[Context]) -> list[Batch]:
        """The usual layout."""
        return batched(contexts, self.settings.batch_tokens)

    def relaid(self, draw: int) -> Layout:
        """Another layout of the same work; rounding differs, and nothing else."""
        return lambda contexts: relaid(contexts, self.settings.batch_tokens, self.student.limit, draw)

    def rescored(self, batch: Batch, hidden: Tensor | None = None, listed: bool = False) -> pa.Table:
        """Forward and reverse KL of a batch's positions at the student's present weights.

        `hidden` are the student's states at these, shape (rows, width), where a pass has made them already. `listed`:
        whether the student's candidates are wanted too.
        """
        taught = self.teacher.at(self.teacher.rows(batch), self.student.device)  # (rows, width)
        hidden = self.student.hidden_rows(batch, "student") if hidden is None else hidden
        states = States(hidden, self.student.head, taught, self.teacher.head)
        columns = rescore(states, batch, self.settings.tile_positions, self.student.tokenizer, listed)
        scored = {name: pa.array(list(values)) if values.ndim > 1 else values for name, values in columns.items()}
        return pa.table({"context_id": batch.context_ids, "position": batch.positions} | scored)

    def bank_kl(self, batches: Sequence[Batch], kl: str = "forward_kl") -> pa.Table:
        """One KL of some batches of the bank at the student's present weights, by (context_id, position).

        Several processes share the batches.
        """
        scored = gathered_rows([self.rescored(batch) for batch in share_of(list(batches))]).sort_by(KEY)
        return scored.select([*(name for name, _ in KEY), kl])

    def rescore_shards(self, state: str, layout: Layout, label: str, listed: bool = False) -> None:
        """Rescore the bank at the student's present weights into the shards of a state; skip those that are there.

        Every process writes its own shards; `listed`: with the student's candidates.
        """
        missing = {index: path for index, path in on_first(self.unscored)(state) if in_share(index)}
        rescored = partial(self.rescored, listed=listed)
        idle = partial(rescored, Batch((self.bank[0],)))
        bar = self.reporter.bar(f"Rescoring: {label}", total=len(self.bank))
        with joined(), in_step(idle, self.student.sharded) as step, bar as advance:
            for index, shard in enumerate(in_shards(self.bank, self.capture.shard_contexts)):
                if index in missing:
                    scored = pa.concat_tables([step(partial(rescored, batch)) for batch in layout(shard)])
                    write_shard(scored.sort_by(KEY), missing[index])
                advance(len(shard))

    def unscored(self, state: str) -> list[tuple[int, Path]]:
        """Number and place of the shards of a state that are still to be written."""
        paths = shard_paths(self.scratch / state, self._bank_shards)
        return [(index, path) for index, path in enumerate(paths) if not is_intact(path)]

    def shards(self, state: str, count: int | None = None) -> list[pa.Table]:
        """The shards of a state, in order; as many as those of the bank where nothing else is said."""
        return [read_parquet(path) for path in shard_paths(self.scratch / state, count or self._bank_shards)]

    @property
    def _bank_shards(self) -> int:
        return -(-len(self.bank) // self.capture.shard_contexts)

    def forward_kl(self, state: str) -> np.ndarray:
        """Forward KL of every bank position in a state, by (context_id, position), float32, nats."""
        return self.kl_in(state, "forward_kl")

    def kl_in(self, state: str, kl: str) -> np.ndarray:
        """One KL of every bank position in a state, likewise."""
        values: np.ndarray = pa.concat_tables(self.shards(state)).sort_by(KEY)[kl].to_numpy()
        return values

    def compare_with_capture(self, scored: pa.Table) -> dict[str, Any]:
        """Compare positions rescored at theta0, before anything moved, with what capture found there.

        Args:
            scored: `context_id`, `position` and `forward_kl` of some positions.

        Returns:
            `largest_difference_from_capture`, nats; and `doubts`: sentences on it where it is more than rounding makes.

        Raises:
            RunError: the difference is far beyond that, so that this is not the theta0 that was captured.
        """
        ids = set(scored["context_id"].to_pylist())
        ours = scored.sort_by(KEY)
        theirs = rows_of(self.run, [c for c in (*self.bank, *self.update) if c.context_id in ids], ["forward_kl"])
        theirs = theirs.sort_by(KEY)
        difference = np.abs(ours["forward_kl"].to_numpy().astype(np.float64) - theirs["forward_kl"].to_numpy())
        mean, largest, at = float(difference.mean()), float(difference.max()), int(difference.argmax())
        facts: dict[str, Any] = {"largest_difference_from_capture": largest}
        usual_mean, usual_largest = _ROUNDING[self.capture.dtype]
        excess = max(mean / usual_mean, largest / usual_largest)
        if excess <= 1:
            return facts
        context, position, now, before = (
            table[name][at].as_py()
            for table, name in ((ours, KEY[0][0]), (ours, KEY[1][0]), (ours, "forward_kl"), (theirs, "forward_kl"))
        )
        what = (
            f"rescoring theta0 does not give what capture found in {self.run}: at context {context}, position "
            f"{position}, the forward KL is {now:.4g} nats and was {before:.4g}; on average they differ by {mean:.2g} "
            f"nats, where {self.capture.dtype} rounds by less than {usual_mean:g}"
        )
        if excess > _FAR:
            raise RunError(
                f"{what}: the weights, the device, or versions of libraries are not those of the capture: restore "
                "them, or capture again"
            )
        self.reporter.say(what)
        return facts | {"doubts": [f"{what[0].upper()}{what[1:]}."]}

    def mean_kl(self, contexts: Sequence[Context], kl: str = "forward_kl") -> Objective:
        """The mean of one KL over some contexts; of forward KL, over those set aside, it is L_fix (paper Eq. 2)."""
        return Objective(contexts, self.teacher, position_loss(kl, {}))


def set_up(
    stage: Stage,
    probe_id: str,
    settings: ProbeSettings,
    capture: CaptureSettings,
    sources: Sources,
    device: str,
    reporter: Reporter,
    kind: Measurement,
) -> ProbeSetup:
    """Load the teacher, store its states of every context, and let it go but for its head; then load the student.

    They are there together only where the teacher is needed again.

    Args:
        stage: the probe's stage, claimed.
        probe_id: its name.
        settings: the probe's settings.
        capture: the settings of the run's capture.
        sources: student and teacher.
        device: torch device.
        reporter: progress.
        kind: the probe, as its kind measures it.
    """
    contexts = list(read_contexts(stage.run, Positions.of(capture)))
    bank = [c for c in contexts if c.split == "bank"]
    if settings.bank_contexts > len(bank):
        raise RunError(f"{stage.run} has {len(bank)} bank contexts, --bank-contexts asks for {settings.bank_contexts}")
    fix, update = update_contexts(stage.run, kind, contexts)
    kind.check(stage.run, bank, update)
    refuse_what_cannot_fit(settings, capture, sources, update, device, reporter)
    with joined():
        models = outlined(outline(sources[0]), outline(sources[1]), sources[0].end_of_text)
    more = kind.further_contexts(update, min(models.student.limit, models.teacher.limit))
    groups = [bank, [c for c in contexts if c.split == "update"], more]
    scratch = stage.run / stage.scratch
    file = scratch / "teacher.npy" if more else on_first(_states_file)(stage, capture, settings)
    teacher_model = load_alone(sources[1], capture.dtype, device, shard=settings.shard_model)
    teacher = compute_teacher_states(teacher_model, groups, settings.batch_tokens, file, reporter)
    needed_again = teacher_model if settings.rollouts == "fresh" else None
    del teacher_model
    if settings.shard_model:
        gc.collect()  # what FSDP2 has wrapped refers to itself
    student = load_alone(sources[0], capture.dtype, device, shard=settings.shard_model, master=True)
    student.end_with(models.student.end_ids)
    choose_weights(student, settings)
    return ProbeSetup(
        run=stage.run,
        probe_id=probe_id,
        scratch=scratch,
        settings=settings,
        capture=capture,
        student=student,
        teacher_model=needed_again,
        teacher=teacher,
        theta0=Theta0(student),
        bank=bank[: settings.bank_contexts or None],
        update=update,
        fix=fix,
        further=more,
        reporter=reporter,
    )


def _states_file(stage: Stage, capture: CaptureSettings, settings: ProbeSettings) -> Path:
    """Return the file of the teacher's states that probes of a run share where they would compute the same bytes."""
    note = stage.read()
    assert note is not None, "a claimed stage has a note"
    decided_by = {"teacher": note["inputs"]["teacher"], "contexts": note["inputs"]["contexts"]}
    decided_by |= {
        "positions": asdict(Positions.of(capture)),
        "dtype": capture.dtype,
        "batch_tokens": settings.batch_tokens,
    }
    return shared_file(stage.run / "teacher_states", decided_by | note["made_with"])


def update_contexts(run: Path, kind: Measurement, contexts: Sequence[Context]) -> tuple[list[Context], list[Context]]:
    """Return the contexts set aside for L_fix, and the update batch.

    Raises:
        RunError: there are too few.
    """
    settings = kind.settings
    chosen = [c for c in contexts if c.split == settings.update_on]
    fix: list[Context] = []
    if settings.reads("fix_contexts"):
        fix = _set_aside(run, settings, [c for c in contexts if c.split == "update"])
    if kind.fix_apart:
        aside = {c.context_id for c in fix}
        chosen = [c for c in chosen if c.context_id not in aside]
    wanted = settings.update_contexts or len(chosen)
    if settings.reads("update_contexts") and (not chosen or wanted > len(chosen)):
        raise RunError(
            f"{run} has {len(chosen)} contexts to update on ({settings.update_on}{', L_fix aside' if fix else ''}), "
            f"--update-contexts asks for {wanted or 'some'}: capture more --update-prompts, or ask for fewer contexts"
        )
    return fix, kind.batch(chosen)


def noise_floor(before: np.ndarray, again: np.ndarray) -> float:
    """99th percentile of what another batch layout changes in a position's KL, nats."""
    return float(np.quantile(np.abs(before - again), 0.99))


def rows_of(run: Path, contexts: Sequence[Context], columns: Sequence[str]) -> pa.Table:
    """Rows of the `positions` table at some contexts, context by context, position by position."""
    names, folder = ["context_id", "position", *columns], run / "positions"
    table = positions_of(folder, names).read_arrow(folder, names)
    order = {c.context_id: index for index, c in enumerate(contexts)}
    table = table.filter(pc.is_in(table["context_id"], pa.array(list(order))))
    index = np.array([order[i] for i in table["context_id"].to_pylist()])
    return table.take(np.lexsort((table["position"].to_numpy(), index)))


def _set_aside(run: Path, settings: ProbeSettings, contexts: Sequence[Context]) -> list[Context]:
    """Draw whole prompts until there are enough contexts, so that L_fix shares no prompt with a loss term."""
    prompts = sorted({c.prompt_id for c in contexts})
    rng = np.random.default_rng(derive_seed(settings.seed, "fix"))
    fix: list[Context] = []
    for prompt in rng.permutation(prompts):
        if len(fix) < settings.fix_contexts:
            fix += [c for c in contexts if c.prompt_id == prompt]
    if len(fix) < settings.fix_contexts or len(fix) == len(contexts):
        raise RunError(
            f"{run} has {len(contexts)} update contexts, and --fix-contexts {settings.fix_contexts} of them are to be "
            "set aside for L_fix: capture more --update-prompts, or set fewer aside"
        )
    return fix

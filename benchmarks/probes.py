"""What first-order predictions and isolated steps cost, in forward and backward passes of the student as it is."""

import tempfile
from pathlib import Path

import pyarrow as pa
import torch
from workload import Row, bare_pass, best, random_contexts

from teachdiag.diagnostics.models.alignment import Batch, Context, batched
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probes.derivatives import Along, choose_step, derivatives
from teachdiag.diagnostics.probes.isolated import hold_out, mean_kl, steps_in_context
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0
from teachdiag.diagnostics.probes.updates import gradient
from teachdiag.diagnostics.probes.workbench import Workbench
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings

POSITIONS, BANK, FIX = 64, 48, 2
STEPPED = (10, 20, 30, 40, 50, 60)  # positions of one context that get an isolated step


def probe_rows(pair: Pair, quiet: Reporter) -> list[Row]:
    """Predictions over a bank, then isolated steps in one context of it."""
    bank, fix = random_contexts(BANK, POSITIONS, "bank"), random_contexts(FIX, POSITIONS, "update", first=BANK)
    with tempfile.TemporaryDirectory() as folder:
        settings = ProbeSettings(kind="isolated", fix_contexts=FIX)
        states = Path(folder) / "teacher.npy"
        bench = Workbench(
            run=Path(folder),
            probe_id="bench",
            scratch=Path(folder),
            settings=settings,
            capture=CaptureSettings(),
            student=pair.student,
            teacher_model=None,
            teacher=compute_teacher_states(pair.teacher, [bank, fix], settings.batch_tokens, states, quiet),
            theta0=Theta0(pair.student),
            bank=bank,
            update=fix,
            fix=fix,
            further=[],
            reporter=quiet,
        )
        predicted, rows = _prediction_rows(bench)
        return rows + _isolated_rows(bench, predicted)


def _prediction_rows(bench: Workbench) -> tuple[float, list[Row]]:
    batches = batched(bench.bank, bench.settings.batch_tokens)
    bare = best(lambda: [bare_pass(bench.student, batch) for batch in batches])
    loss = {"loss": position_loss("reverse_kl", {})}
    direction = gradient(bench.student, bench.mean_kl(bench.fix), bench.settings, bench.reporter)
    exact = Along(bench.student, bench.theta0, direction, None)

    def central() -> None:
        step, _ = choose_step(exact, bench.bank, bench.teacher, loss["loss"], bench.settings)
        along = Along(bench.student, bench.theta0, direction, step)
        derivatives(along, bench.bank, bench.teacher, loss, bench.settings, bench.reporter)

    differences = best(central)
    forward = best(lambda: derivatives(exact, bench.bank, bench.teacher, loss, bench.settings, bench.reporter))
    return differences, [
        (f"one bare student pass over a bank of {BANK} contexts", f"{bare:.2f} s", "1"),
        (
            "first-order predictions by central differences, step chosen",
            f"{differences:.2f} s",
            f"{differences / bare:.2f}",
        ),
        ("first-order predictions in forward mode", f"{forward:.2f} s", f"{forward / bare:.2f}"),
    ]


def _isolated_rows(bench: Workbench, predicted: float) -> list[Row]:
    context = bench.bank[0]
    n = len(STEPPED)
    plain = best(lambda: [_plain_step(bench, context, t) for t in STEPPED])
    drawn = pa.table(
        {
            "context_id": [context.context_id] * n,
            "position": list(STEPPED),
            "prompt_id": [context.prompt_id] * n,
            "split": ["bank"] * n,
            "stratum": [0] * n,
            "weight": [1.0] * n,
        }
    )
    held = hold_out(bench)
    with_fix = best(lambda: steps_in_context(bench, context, drawn, held))
    own = with_fix - n * best(lambda: mean_kl(bench, held.batches))
    one_by_one = with_fix / n * sum(len(c.response) for c in bench.bank)
    return [
        ("forward, backward and forward over the prefix of one position", f"{plain / n:.3f} s", "1"),
        ("isolated step, gain and inner products at its own context", f"{own / n:.3f} s", f"{own / plain:.2f}"),
        (f"the same with L_fix on {FIX} contexts", f"{with_fix / n:.3f} s", f"{with_fix / plain:.2f}"),
        ("predicting every position against stepping on each", f"{one_by_one:.0f} s", f"{one_by_one / predicted:.0f}"),
    ]


def _plain_step(bench: Workbench, context: Context, position: int) -> None:
    """What one isolated step costs at least, with the model as it is and nothing kept of theta0."""
    batch = Batch((Context(0, "", "bank", context.student_prompt, (), context.response[: position + 1]),))
    logits = bench.student.model(input_ids=batch.input_ids("student", bench.student.device), use_cache=False).logits
    loss = logits[0, -1].log_softmax(-1)[0]
    torch.autograd.grad(loss, [p for _, p in bench.student.parameters()])
    bare_pass(bench.student, batch)

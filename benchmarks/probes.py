"""What first-order predictions and isolated steps cost, in forward and backward passes of the student as it is."""

import tempfile
from pathlib import Path

import pyarrow as pa
import torch
from workload import Row, bare_pass, best, random_contexts

from teachdiag.diagnostics.models.alignment import Batch, Context, batched
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probes.derivatives import Along, Term, choose_step, derivatives
from teachdiag.diagnostics.probes.isolated import hold_out, mean_kl, steps_in_context
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0
from teachdiag.diagnostics.probes.updates import gradient
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
        setup = ProbeSetup(
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
        predicted, rows = _prediction_rows(setup)
        return rows + _isolated_rows(setup, predicted)


def _prediction_rows(setup: ProbeSetup) -> tuple[float, list[Row]]:
    batches = batched(setup.bank, setup.settings.batch_tokens)
    bare = best(lambda: [bare_pass(setup.student, batch) for batch in batches])
    terms = {"loss": Term(position_loss("reverse_kl", {}), setup.teacher)}
    direction = gradient(setup.student, setup.mean_kl(setup.fix), setup.settings, setup.reporter)
    exact = Along(setup.student, setup.theta0, direction, None)

    def central() -> None:
        step, _ = choose_step(exact, setup.bank, terms["loss"], setup.settings)
        along = Along(setup.student, setup.theta0, direction, step)
        derivatives(along, setup.bank, terms, setup.settings, setup.reporter)

    differences = best(central)
    forward = best(lambda: derivatives(exact, setup.bank, terms, setup.settings, setup.reporter))
    return differences, [
        (f"one bare student pass over a bank of {BANK} contexts", f"{bare:.2f} s", "1"),
        (
            "first-order predictions by central differences, step chosen",
            f"{differences:.2f} s",
            f"{differences / bare:.2f}",
        ),
        ("first-order predictions in forward mode", f"{forward:.2f} s", f"{forward / bare:.2f}"),
    ]


def _isolated_rows(setup: ProbeSetup, predicted: float) -> list[Row]:
    context = setup.bank[0]
    n = len(STEPPED)
    plain = best(lambda: [_plain_step(setup, context, t) for t in STEPPED])
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
    held = hold_out(setup)
    with_fix = best(lambda: steps_in_context(setup, context, drawn, held))
    own = with_fix - n * best(lambda: mean_kl(setup, held.batches))
    one_by_one = with_fix / n * sum(len(c.response) for c in setup.bank)
    return [
        ("forward, backward and forward over the prefix of one position", f"{plain / n:.3f} s", "1"),
        ("isolated step, gain and inner products at its own context", f"{own / n:.3f} s", f"{own / plain:.2f}"),
        (f"the same with L_fix on {FIX} contexts", f"{with_fix / n:.3f} s", f"{with_fix / plain:.2f}"),
        ("predicting every position against stepping on each", f"{one_by_one:.0f} s", f"{one_by_one / predicted:.0f}"),
    ]


def _plain_step(setup: ProbeSetup, context: Context, position: int) -> None:
    """What one isolated step costs at least, with the model as it is and nothing kept of theta0."""
    batch = Batch((Context(0, "", "bank", context.student_prompt, (), context.response[: position + 1]),))
    logits = setup.student.model(input_ids=batch.input_ids("student", setup.student.device), use_cache=False).logits
    loss = logits[0, -1].log_softmax(-1)[0]
    torch.autograd.grad(loss, [p for _, p in setup.student.parameters()])
    bare_pass(setup.student, batch)

"""What `teachdiag.Monitor` costs a training at its default interval, as a share of the steps between two looks."""

import tempfile

import torch
from training import ROLLOUTS, STEPS, WHOLE, seconds
from workload import QUIET, Row, best, load_bench_pair, random_contexts

from teachdiag.diagnostics.models.alignment import batched
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.monitoring.bank import Canary
from teachdiag.diagnostics.monitoring.in_training import ModelInTraining
from teachdiag.diagnostics.monitoring.monitor import Monitor
from teachdiag.settings import CaptureSettings

BATCH = 16  # sequences of a step, of 64 tokens as in the part `training`
_CONTEXTS, _POSITIONS, _SEQUENCES = 16, 64, 4  # the monitor's defaults


def monitoring_rows() -> list[Row]:
    """Time a look at the canary and at the live batch, beside the steps of full OPD that come between two."""
    took = seconds("full", 1.0, BATCH)
    step = took[WHOLE] / STEPS
    with tempfile.TemporaryDirectory() as folder:
        watch = Monitor(folder, reporter=QUIET)
        pair = load_bench_pair()
        watch.canary = _canary(pair)
        canary = best(lambda: watch.observe_canary(0, pair.student.model))
        student, teacher = (ModelInTraining(model.model, pair.student.known) for model in (pair.student, pair.teacher))
        batch = _live()
        live = best(lambda: watch.observe_trainer_batch(0, student, teacher, batch))
        between = step * watch.every
    return [
        (f"one step of full OPD on {BATCH} sequences", f"{step:.2f} s", "1"),
        ("  of it rollouts", f"{took[ROLLOUTS] / STEPS:.2f} s", f"{took[ROLLOUTS] / STEPS / step:.2f}"),
        (f"a look at the canary, {_CONTEXTS} contexts", f"{canary:.2f} s", f"{canary / step:.3f}"),
        (f"a look at the live batch, {_SEQUENCES} sequences", f"{live:.2f} s", f"{live / step:.3f}"),
        (f"both, of {watch.every} steps", f"{canary + live:.2f} s", f"{(canary + live) / between:.3f}"),
    ]


def _canary(pair: Pair) -> Canary:
    contexts = random_contexts(_CONTEXTS, _POSITIONS, "bank")
    batches = tuple(batched(contexts, CaptureSettings().batch_tokens))
    states = tuple(pair.teacher.hidden_rows(batch, "teacher") for batch in batches)
    return Canary(batches, states, pair.teacher.head, pair.student.known, tuple(pair.student.end_ids))


def _live() -> dict[str, torch.Tensor]:
    """A batch as an online trainer has it, prompts of one length."""
    contexts = random_contexts(_SEQUENCES, _POSITIONS, "update")
    shortest = min(len(c.student_prompt) for c in contexts)
    prompts = torch.tensor([c.student_prompt[:shortest] for c in contexts])
    completions = torch.tensor([c.response for c in contexts])
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
    }

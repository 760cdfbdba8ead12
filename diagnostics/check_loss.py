"""Stage check-loss: losses of the user's own at a run's positions, beside teachdiag's, TRL's and a known mistake."""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.loss_checks.gradients import LossFunction, Sample, gradient
from teachdiag.diagnostics.loss_checks.references import references
from teachdiag.diagnostics.loss_checks.verdict import judge
from teachdiag.diagnostics.models.alignment import Batch, Context, Side
from teachdiag.diagnostics.models.captured import captured_pair
from teachdiag.diagnostics.models.language_model import LanguageModel, nan_advice
from teachdiag.diagnostics.models.pair import Pair, load_pair
from teachdiag.diagnostics.processes.devices import pick_device
from teachdiag.errors import ContextError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.registry import attribute, load
from teachdiag.seeds import derive_seed
from teachdiag.settings import CheckLossSettings

_MASKED = -1e4  # logit of ids that no tokenizer knows: minus infinity would make NaN of 0 log 0 in a plain loss


def run_check_loss(settings: CheckLossSettings, reporter: Reporter) -> dict[str, Any]:
    """Compare each loss's expected gradient with those of both KLs, at positions of a captured bank.

    Returns:
        `losses` and `references`: for each the fields of `Verdict`; and how many `tokens` they were compared at.

    Raises:
        InputError: a loss cannot be loaded, fails, or returns something of another shape; or the run's pair is not
            what it was.
    """
    losses = {name: _loss(name) for name in settings.losses}  # before models: a typo costs nothing
    run = Path(settings.run)
    device = pick_device(settings.device)
    capture, sources = captured_pair(run, reporter)
    contexts = _drawn([c for c in read_contexts(run, Positions.of(capture)) if c.split == "bank"], settings)
    sample = _sample(load_pair(sources, capture.dtype, device), contexts, settings.positions)
    for name, loss in losses.items():  # one that fails does so at once
        gradient(f"loss {name}", loss, sample)
    others = references() if settings.references else {}
    seed = derive_seed(settings.seed, "tail")
    verdict = partial(judge, sample=sample, candidates=settings.candidates, draws=settings.tail_draws, seed=seed)
    verdicts = []
    with reporter.bar("Losses", total=len(losses) + len(others)) as advance:
        for name, loss in [*losses.items(), *others.items()]:
            judged = verdict(name, loss)
            verdicts.append(asdict(judged) | {"teaches": judged.teaches})
            advance()
    return {
        "run": settings.run,
        "tokens": int(sample.mask.sum()),
        "losses": verdicts[: len(losses)],
        "references": verdicts[len(losses) :],
    }


def _loss(name: str) -> LossFunction:
    """Import a user's loss, also from the folder in which the command is typed.

    Raises:
        SettingsError: it cannot be imported, or does not take the four arguments.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    return load(f"loss {name}", partial(attribute, name), _checked)


def _checked(label: str, loaded: object) -> LossFunction:
    if not callable(loaded):
        raise SettingsError(f"{label} is {type(loaded).__name__}, no function")
    try:
        inspect.signature(loaded).bind(*"1234")
    except TypeError as error:
        raise SettingsError(
            f"{label} cannot be called as loss(student_logits, teacher_logits, token_ids, mask): {error}"
        ) from error
    return loaded


def _drawn(bank: Sequence[Context], settings: CheckLossSettings) -> list[Context]:
    """Draw contexts, and in each a run of kept positions, with whose last one it ends."""
    rng = np.random.default_rng(derive_seed(settings.seed, "contexts"))
    chosen = rng.permutation(len(bank))[: settings.contexts]
    contexts = []
    for context in (bank[index] for index in chosen):
        end = int(rng.integers(min(settings.positions, context.rows), context.rows + 1))
        contexts.append(context.keeping(context.positions[:end]))
    return contexts


@torch.no_grad()
def _sample(pair: Pair, contexts: Sequence[Context], positions: int) -> Sample:
    """Both models' logits at the last kept positions of each context, between one column in front and some behind.

    These repeat the rows beside them, outside the mask; their tokens are padding.

    Raises:
        ContextError: a logit is NaN or infinite.
    """
    padding = min(pair.student.end_ids, default=0)
    columns: list[list[int]] = []  # of each context, the row that stands in each column
    masks, tokens = [], []
    for context in contexts:
        end = context.rows
        rows = list(range(max(end - positions, 0), end))
        behind = positions - len(rows) + 1
        columns.append([rows[0], *rows, *[rows[-1]] * behind])
        masks.append([False, *[True] * len(rows), *[False] * behind])
        tokens.append([padding, *Batch((context,)).tokens[rows].tolist(), *[padding] * behind])
    device = pair.student.device
    return Sample(
        student=_logits(pair.student, "student", contexts, columns),
        teacher=_logits(pair.teacher, "teacher", contexts, columns).to(device),
        tokens=torch.tensor(tokens, device=device),
        mask=torch.tensor(masks, device=device),
        end_ids=tuple(sorted(pair.student.end_ids)),
    )


def _logits(model: LanguageModel, side: Side, contexts: Sequence[Context], columns: Sequence[Sequence[int]]) -> Tensor:
    """A model's logits at some rows of each context, shape (contexts, columns, V), float32."""
    rows = []
    for context, shown in zip(contexts, columns, strict=True):
        logits = model.head(model.hidden_rows(Batch((context,)), side)[list(shown)])
        if logits.isnan().any() or logits.isposinf().any():
            where, advice = f"in context {context.context_id}", nan_advice(model.computes_in)
            raise ContextError(f"the {side} gives NaN or infinite logits {where}: {advice}")
        rows.append(logits.clamp_min(_MASKED))
    return torch.stack(rows)

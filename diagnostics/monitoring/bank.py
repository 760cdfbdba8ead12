"""The canary: contexts of a captured bank that never change, with what the teacher said of them, once."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Batch, batched
from teachdiag.diagnostics.models.captured import captured_pair
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import outline_pair
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.errors import RunError
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed


@dataclass(frozen=True)
class Canary:
    """Contexts of a bank, in batches, and the teacher's states at their positions.

    Attributes:
        batches: the contexts.
        states: the teacher's hidden states, one tensor a batch, shape (rows, width).
        head: its LM head.
        known: ids that both models know.
        end_ids: tokens that end a response.
    """

    batches: tuple[Batch, ...]
    states: tuple[Tensor, ...]
    head: Head
    known: Known
    end_ids: tuple[int, ...]


def load_canary(run: Path, contexts: int, positions: int, device: str, reporter: Reporter) -> Canary:
    """Draw contexts of a run's bank, let its teacher read them, and keep of the teacher its LM head.

    Args:
        run: a run with a captured bank.
        contexts: how many are drawn; the same ones from the same bank, always.
        positions: response positions of each, at most.
        device: torch device.
        reporter: told where heads are cut.

    Raises:
        InputError: the run has no capture, or fewer contexts, or its teacher is not what it was.
    """
    capture, sources = captured_pair(run, reporter)
    chosen_from = "spread" if capture.positions_from == "all" else capture.positions_from
    kept = Positions(min(positions, capture.positions), chosen_from, capture.seed)
    bank = [c for c in read_contexts(run, kept) if c.split == "bank"]
    if len(bank) < contexts:
        raise RunError(f"{run} has {len(bank)} bank contexts, and the canary asks for {contexts}: ask for fewer")
    pair = outline_pair(sources, reporter)
    drawn = np.random.default_rng(derive_seed(0, "canary")).permutation(len(bank))[:contexts]
    chosen = [bank[index] for index in sorted(drawn)]
    batches = tuple(batched(chosen, capture.batch_tokens))
    teacher = load(sources[1], capture.dtype, device)
    states = tuple(teacher.hidden_rows(batch, "teacher") for batch in batches)
    ends = tuple(sorted(pair.student.end_ids))
    return Canary(batches, states, teacher.head, pair.known, ends)  # of the teacher's weights, the head alone stays

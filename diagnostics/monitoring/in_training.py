"""A model while a trainer has it: hidden states without a trace, and the trainer's batch as contexts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from teachdiag.diagnostics.models.alignment import Batch, Context, Side
from teachdiag.diagnostics.models.head import Head, head_of
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.processes.parameters import are_sharded
from teachdiag.errors import SettingsError


@dataclass(frozen=True)
class ModelInTraining:
    """A transformers causal language model whose weights somebody else moves.

    Attributes:
        model: the model, not wrapped; adapters of peft are fine.
        known: ids that both models know, to which its head is cut.
        half: type in which the trainer computes under autocast; None where it does not.
    """

    model: Any
    known: Known
    half: torch.dtype | None = None

    @property
    def head(self) -> Head:
        """Its LM head as it is now."""
        return head_of(self.model, self.known)

    @torch.no_grad()
    def hidden_rows(self, batch: Batch, side: Side) -> Tensor:
        """Hidden states that feed the LM head at every kept position of a batch, shape (rows, width).

        Raises:
            SettingsError: its weights are sharded over processes.
        """
        if are_sharded(self.model.parameters()):
            raise SettingsError("the monitor does not look at models whose weights are sharded (FSDP, ZeRO-3)")
        device = self.model.device
        # Copies of weights would be half another model beside a training, until the end of a pass that reads them once.
        computing = torch.autocast(device.type, self.half or torch.bfloat16, bool(self.half), cache_enabled=False)
        with _evaluating(self.model), computing:
            ids = batch.input_ids(side, device)
            return batch.gather(self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state, side)


def contexts_of(batch: Mapping[str, Any], sequences: int) -> list[Context]:
    """The first sequences of a trainer's batch as contexts, of which the student's own tokens are kept.

    Args:
        batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask` and perhaps `tool_mask`, as TRL's
            online trainers have them; or `input_ids`, `labels` (-100 outside the response) and perhaps
            `attention_mask`.
        sequences: how many, at most; those without an own token are left out.

    Raises:
        SettingsError: it is neither, or several sequences stand in one row.
    """
    if "completion_ids" in batch:
        cut = _completed(batch, sequences)
    elif "labels" in batch:
        cut = _labelled(batch, sequences)
    else:
        raise SettingsError(
            f"the trainer's batch holds {', '.join(sorted(batch))}: the monitor reads completion_ids, or labels; call "
            "`observe_batch` with logits instead"
        )
    contexts = []
    for number, (prompt, answer, own) in enumerate(cut):
        kept = own.nonzero()[:, 0].tolist()
        if kept and len(prompt):
            ids, response = tuple(prompt.tolist()), tuple(answer[: kept[-1] + 1].tolist())
            contexts.append(Context(number, str(number), "live", ids, ids, response, tuple(kept)))
    return contexts


def _completed(batch: Mapping[str, Any], sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Prompt, response, and which of its tokens are the student's own, of each row."""
    scored = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()
    rows = zip(batch["prompt_ids"], batch["prompt_mask"].bool(), batch["completion_ids"], scored, strict=True)
    for prompt, there, answer, mine in islice(rows, sequences):
        yield prompt[there], answer, mine


def _labelled(batch: Mapping[str, Any], sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same; the response begins with the first label."""
    there = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    places = batch.get("position_ids")
    if (
        places is not None
        and places.shape == there.shape
        and ((places.diff(dim=1) <= 0) & there[:, 1:] & there[:, :-1]).any()
    ):
        raise SettingsError(
            "the trainer's batch has several sequences in a row (packing, padding_free), which the monitor would read "
            "as one: call `observe_batch` with logits instead"
        )
    rows = zip(batch["input_ids"], batch["labels"] != -100, there, strict=True)
    for ids, labelled, present in islice(rows, sequences):
        row, scored = ids[present], labelled[present]
        start = int(scored.nonzero()[0]) if scored.any() else len(row)
        yield row[:start], row[start:], scored[start:]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Switch dropout off for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

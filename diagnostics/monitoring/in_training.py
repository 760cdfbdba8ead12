"""A model while a trainer has it: hidden states without a trace, and the trainer's batch as contexts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
        """Its LM head as it is now, float32."""
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
        with _evaluating(self.model), torch.autocast(device.type, self.half or torch.bfloat16, bool(self.half)):
            ids = batch.input_ids(side, device)
            return batch.gather(self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state, side)


def contexts_of(batch: Mapping[str, Any], sequences: int) -> tuple[list[Context], list[Tensor]]:
    """The first sequences of a trainer's batch as contexts, and which of their response tokens are the student's.

    Args:
        batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask` and perhaps `tool_mask`, as TRL's
            online trainers have them; or `input_ids`, `labels` (-100 outside the response) and perhaps
            `attention_mask`.
        sequences: how many, at most.

    Returns:
        Contexts, and for each a tensor of bools, shape (response,). Sequences without an own token are left out.

    Raises:
        SettingsError: it is neither.
    """
    if "completion_ids" in batch:
        rows = zip(*(batch[name][:sequences] for name in ("prompt_ids", "prompt_mask", "completion_ids")), strict=True)
        own = (batch["completion_mask"] * batch.get("tool_mask", 1))[:sequences].bool()
        cut = [(prompt[there.bool()], answer, mine) for (prompt, there, answer), mine in zip(rows, own, strict=True)]
    elif "labels" in batch:
        cut = list(_labelled(batch, sequences))
    else:
        raise SettingsError(
            f"the trainer's batch holds {', '.join(sorted(batch))}: the monitor reads completion_ids, or labels; call "
            "`observe_batch` with logits instead"
        )
    contexts, masks = [], []
    for number, (prompt, answer, mine) in enumerate(cut):
        if mine.any() and len(prompt):
            end = int(mine.nonzero()[-1]) + 1
            ids = tuple(prompt.tolist())
            contexts.append(Context(number, str(number), "live", ids, ids, tuple(answer[:end].tolist())))
            masks.append(mine[:end])
    return contexts, masks


def _labelled(batch: Mapping[str, Any], sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Prompt, response and mask of each row: the response begins with the first label."""
    ids, labels = batch["input_ids"][:sequences], batch["labels"][:sequences]
    there = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))[:sequences].bool()
    for row, label, present in zip(ids, labels, there, strict=True):
        row, mine = row[present], (label != -100)[present]
        start = int(mine.nonzero()[0]) if mine.any() else len(row)
        yield row[:start], row[start:], mine[start:]


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

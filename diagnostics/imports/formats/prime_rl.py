"""prime-rl's token exports."""

from collections.abc import Mapping
from typing import Any

from teachdiag.diagnostics.imports.files import Format, read_jsonl
from teachdiag.diagnostics.imports.records import (
    BadRow,
    Record,
    Side,
    field,
    ids_of,
    malformed,
    mask_of,
    recorded_of,
    step_of,
)


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a sequence of prime-rl's token exports (`enable_token_export`; follows the source, not run).

    The tokens of all turns stand one after the other; `loss_mask` says which the student sampled. Numbers of a token
    stand beside it, and are of the distribution that predicts it.
    """
    ids = ids_of(field(fields, "token_ids"), "token_ids")
    kept = mask_of(field(fields, "loss_mask"), "loss_mask", len(ids))
    positions = fields.get("position_ids")
    if positions is not None and ids_of(positions, "position_ids") != tuple(range(len(ids))):
        raise malformed("position_ids do not count from 0: the row is more than one sequence, or none from its start")
    copied = fields.get("ce_weights")
    if isinstance(copied, list) and any(copied):
        raise BadRow("not the student's tokens", "ce_weights are not 0: its tokens come from another model")
    start = kept.index(True)
    logp, entropy = (recorded_of(fields.get(name), kept) for name in ("trainer_logprobs", "entropy"))
    return [
        Record(
            where,
            row,
            Side(ids=ids[:start], masked=True),
            Side(ids=ids[start:], masked=True),
            step=step_of(fields),
            response_mask=kept[start:],
            recorded_logp=logp and logp[start:],
            recorded_entropy=entropy and entropy[start:],
        )
    ]


FORMAT = Format(
    name="prime-rl",
    help="prime-rl's token exports (enable_token_export, token_exports/step_*/rank_*.jsonl)",
    suffixes=(".jsonl",),
    rows=read_jsonl,
    parse=_parse,
    pattern="**/*",
)

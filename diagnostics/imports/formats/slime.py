"""What slime saves of its rollouts."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from teachdiag.diagnostics.imports.files import Format
from teachdiag.diagnostics.imports.records import (
    BadRow,
    Record,
    Row,
    Side,
    field,
    ids_of,
    malformed,
    mask_of,
    recorded_of,
    step_of,
)
from teachdiag.errors import RolloutError
from teachdiag.settings.base import shown

_STATUSES = ("completed", "truncated", "aborted")  # of samples; an aborted one has what was sampled until then
_NUMBERS = "?bBhHiIlLqQefd"  # kinds of NumPy numbers that are plain data


def _rows(file: Path) -> Iterator[Row]:
    """Yield the samples of a file that torch saved: plain data, tensors and arrays of numbers, nothing that runs code.

    Raises:
        RolloutError: it holds more than that, is damaged, or has no list `samples`.
    """
    import torch

    try:
        whole = zipfile.is_zipfile(file)
        with torch.serialization.safe_globals(_arrays()):
            content = torch.load(file, map_location="cpu", weights_only=True) if whole else None
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
            raise RolloutError(
                f"{file}: holds objects besides plain data, tensors and arrays, which are not loaded because loading "
                "them runs code: save it anew with those fields removed or as lists"
            ) from error
        raise RolloutError(f"{file}: is damaged, torch cannot read it") from error
    if not whole:
        raise RolloutError(f"{file}: is no file of torch.save, or is cut short")
    saved = content if isinstance(content, dict) else {}
    samples, step = saved.get("samples"), saved.get("rollout_id")  # each step has weights of its own
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise RolloutError(f"{file}: has no list 'samples' of dictionaries, so it is no rollout data that slime saved")
    for number, fields in enumerate(samples):
        yield Row(f"{file}, sample {number}", number, {"step": step} | fields, str(file))


def _arrays() -> list[Any]:
    """What a pickle may name to make NumPy's arrays and numbers, under the names of NumPy 1 and 2."""
    kinds = {type(np.dtype(kind)) for kind in _NUMBERS}
    makers: dict[str, Any] = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    named = [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, maker in makers.items()]
    return [np.ndarray, (_number_type, "numpy.dtype"), *kinds, *named]


def _number_type(kind: Any, *rest: Any) -> Any:  # noqa: ANN401 (whatever the file holds)
    dtype = np.dtype(kind, *rest)
    if dtype.char not in _NUMBERS:
        raise pickle.UnpicklingError("unsupported global: an array of something else than numbers")
    return dtype


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a sample of slime's `--save-debug-rollout-data`: the last `response_length` of its ids are the response."""
    status = fields.get("status")
    if status is not None and not (isinstance(status, str) and status in _STATUSES):
        raise BadRow("not generated", f"status is {shown(status)}: its tokens are no finished rollout")
    ids, length = ids_of(field(fields, "tokens"), "tokens"), field(fields, "response_length")
    if type(length) is not int or not 0 <= length < len(ids):
        raise malformed(f"response_length is {shown(length)}, but there are {len(ids)} tokens with the prompt")
    start = len(ids) - length
    if not length:
        raise BadRow("aborted before a token" if status == "aborted" else "empty", "the response is empty")
    finish = "length" if status == "truncated" else "unknown"
    mask = fields.get("loss_mask")
    kept = (True,) * length if mask is None else mask_of(mask, "loss_mask", length)
    prompt, response = (fields.get(name) for name in ("prompt", "response"))
    return [
        Record(
            where,
            row,
            Side(ids=ids[:start], text=prompt if isinstance(prompt, str) and prompt and all(kept) else None),
            Side(
                ids=ids[start:],
                text=response if isinstance(response, str) and response and all(kept) else None,
                masked=mask is not None,
            ),
            finish_reason=finish,
            step=step_of(fields),
            response_mask=None if mask is None else kept,
            recorded_logp=recorded_of(fields.get("rollout_log_probs"), kept),
        )
    ]


FORMAT = Format(
    name="slime",
    help="what slime's --save-debug-rollout-data keeps (.pt)",
    suffixes=(".pt",),
    rows=_rows,
    parse=_parse,
)

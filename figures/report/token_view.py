"""The token view's data: contexts as tokens, each with its numbers and both models' candidates."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from teachdiag.artefacts import CONTEXTS, GAINS, POSITIONS, PREDICTIONS, VOCABULARY
from teachdiag.figures.run_tables import RunTables, steps_of
from teachdiag.scores import norm, q3_mask
from teachdiag.selectors import SELECTORS, Tokens, select
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import ReportSettings

_CANDIDATES = 5
_SELECTED = ("learnable", "forward_kl", "entropy", "tip", "incompatible", "logit_alignment")
_KEY = ["context_id", "position"]
_REGION_SHARE = 0.9  # 'high' D^L or D^I: the upper tenth of the bank
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """What the page draws tokens from.

    `columns`: how each number is called, its unit, and the ends of its colour scale. `contexts`: tokens and numbers.
    `total`: contexts of the bank. `missing`: why there is no view, or ''.
    """

    columns: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for the page."""
        return {"columns": self.columns, "contexts": self.contexts}


def token_view(run: Path, tables: RunTables, stages: dict[str, Any], settings: ReportSettings) -> View:
    """Gather the first contexts of the bank with everything a token shows.

    Args:
        run: the run directory.
        tables: its analysis.
        stages: notes of its stages.
        settings: how many contexts, and which budget selectors are shown at.
    """
    if not (run / "vocabulary").exists():
        return View(missing="This run was captured without token texts: capture again to see its tokens.")
    names = [c.name for c in POSITIONS.columns]
    bank = POSITIONS.read_arrow(run / "positions", names)
    frame = bank.select([n for n in names if "topk" not in n]).to_pandas()
    inside = (frame["split"] == "bank").to_numpy()
    order = np.flatnonzero(inside)[np.lexsort([frame[name].to_numpy()[inside] for name in reversed(_KEY)])]
    bank, frame = bank.take(order), frame.iloc[order].reset_index(drop=True)
    numbers = _numbers(run, tables, stages, frame)
    chosen = [f"selected by {name}" for name in _SELECTED]
    selected = _selections(Tokens.from_table(bank, K), settings.budget)
    q3 = q3_mask(*(frame[name].to_numpy(np.float64) for name in ("student_entropy", "forward_kl")))[0]
    regions = np.stack([q3, *(_upper(numbers[name]) for name in ("D^L", "D^I"))])
    words = VOCABULARY.read(run / "vocabulary")
    texts = dict(zip(map(int, words["token_id"]), words["text"], strict=True))
    ids = list(dict.fromkeys(frame["context_id"]))[: settings.contexts]
    contexts = CONTEXTS.read(run / "contexts", ["context_id", "prompt_id", "prompt_token_ids"]).set_index("context_id")
    shown = [_context(i, contexts.loc[i], bank, frame, numbers, selected, regions, texts) for i in ids]
    columns = [_scale(name, values) for name, values in numbers.items()]
    budget = f"{100 * settings.budget:g}% of the bank"
    columns += [{"name": name, "unit": budget, "kind": "selected", "low": 0, "high": 1} for name in chosen]
    return View(columns, shown, frame["context_id"].nunique())


def _numbers(run: Path, tables: RunTables, stages: dict[str, Any], bank: pd.DataFrame) -> dict[str, Array]:
    """Every column that can be chosen, aligned with the bank's positions; NaN where unknown."""
    raw = {name: bank[name].to_numpy(np.float64) for name in ("forward_kl", "student_entropy", "logit_alignment")}
    d, c = (bank[f"{name}_k{K}"].to_numpy(np.float64) for name in ("disagreement", "compatibility"))
    scaled_d, scaled_c = norm(d, "disagreement"), norm(c, "compatibility")
    found = {"D^L": scaled_d * scaled_c, "D^I": scaled_d * (1 - scaled_c), "C": c, "forward KL": raw["forward_kl"]}
    for step in steps_of(tables)[:1]:
        gains = GAINS.read(run / "gains" / step.probe_id, [*_KEY, "gain"])
        found["gain"] = bank[_KEY].merge(gains, on=_KEY, how="left")["gain"].to_numpy(np.float64)
    for probe_id, note in stages.items():
        if note["settings"].get("kind") == "predicted":
            predicted = PREDICTIONS.read(run / "predictions" / probe_id, [*_KEY, "predicted_gain"])
            aligned = bank[_KEY].merge(predicted, on=_KEY, how="left")
            found["predicted gain"] = aligned["predicted_gain"].to_numpy(np.float64)
            break
    return found | {"student entropy": raw["student_entropy"], "logit alignment": raw["logit_alignment"]}


def _selections(tokens: Tokens, budget: float) -> npt.NDArray[np.bool_]:
    """Which positions each selector takes of the whole bank, shape (selectors, positions)."""
    return np.stack([select(tokens, SELECTORS[name], budget).kept for name in _SELECTED])


def _upper(values: Array) -> npt.NDArray[np.bool_]:
    return values >= np.quantile(values, _REGION_SHARE)


def _scale(name: str, values: Array) -> dict[str, Any]:
    """How a column is coloured: from 0, or to both sides of it; the outer 2% share the end's colour."""
    unit = "nats" if name in ("forward KL", "gain", "predicted gain", "student entropy") else ""
    known = values[~np.isnan(values)]
    if name in ("gain", "predicted gain", "logit alignment"):
        end = float(np.quantile(np.abs(known), 0.98))
        return {"name": name, "unit": unit, "kind": "diverging", "low": -end, "high": end}
    low = float(np.quantile(known, 0.02)) if name == "C" else 0.0
    return {"name": name, "unit": unit, "kind": "sequential", "low": low, "high": float(np.quantile(known, 0.98))}


def _context(
    context_id: int,
    facts: pd.Series,
    bank: Any,  # noqa: ANN401 (an Arrow table)
    frame: pd.DataFrame,
    numbers: dict[str, Array],
    selected: npt.NDArray[np.bool_],
    regions: npt.NDArray[np.bool_],
    texts: dict[int, str],
) -> dict[str, Any]:
    rows = np.flatnonzero(frame["context_id"].to_numpy() == context_id)
    lists = bank.slice(int(rows[0]), len(rows)).to_pydict()
    tokens = []
    for place, row in enumerate(rows):
        values = [_short(column[row]) for column in numbers.values()] + [int(flag) for flag in selected[:, row]]
        candidates = [
            [
                [texts.get(i, f"<{i}>"), _short(float(np.exp(logp)))]
                for i, logp in zip(
                    lists[f"{side}_topk_ids"][place][:_CANDIDATES],
                    lists[f"{side}_topk_logp"][place][:_CANDIDATES],
                    strict=True,
                )
            ]
            for side in ("student", "teacher")
        ]
        own = int(frame["token_id"].iloc[row])
        realised = [_short(float(np.exp(frame[f"{side}_logp"].iloc[row]))) for side in ("student", "teacher")]
        tokens.append(
            {"t": texts.get(own, f"<{own}>"), "v": values, "r": [int(flag) for flag in regions[:, row]]}
            | {"s": candidates[0], "q": candidates[1], "p": realised}
        )
    prompt = "".join(texts.get(int(i), f"<{i}>") for i in facts["prompt_token_ids"])
    return {"id": int(context_id), "prompt": prompt, "tokens": tokens}


def _short(value: float) -> float | None:
    """Four significant digits: what a card shows, and a page can hold."""
    return None if np.isnan(value) else float(f"{value:.4g}")

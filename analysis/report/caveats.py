"""What in this run's data keeps its numbers from being read plainly, each with its size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.kinds.kind import Results
from teachdiag.analysis.kinds.steps import specification_shares
from teachdiag.analysis.step.specifications import AGREEMENT
from teachdiag.analysis.step.step_length import TOO_LONG
from teachdiag.artefacts import CONTEXTS, probes_by_step
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where

_MUCH_CUT = 0.2  # of the bank's responses
_CONCENTRATED = 0.5  # of the sum of squares, in ten positions
_FEW_DRAWS = 3  # of each placebo, with fewer of which their spread is hardly known


def caveats(run: Path, capture: Mapping[str, Any], results: Results) -> list[tuple[str, str]]:
    """Return headings and sentences, in a fixed order.

    Args:
        run: the run directory.
        capture: the note of its capture.
        results: the tables of its analysis.
    """
    doubts = [("Can this pair answer?", f"{doubt}.") for doubt in capture["results"].get("warnings", ())]
    sentences = [
        *doubts,
        ("Truncation", _truncation(run, capture["settings"])),
        ("Q3", _q3(results.estimates)),
        ("Ties and saturation", _ties(results.saturation)),
    ]
    for probe_id in probes_by_step(results.estimates):
        sentences += _of_step(results, probe_id)
    return [(heading, text) for heading, text in sentences if text]


def changing_caveats(run: Path, capture: Mapping[str, Any], records: Sequence[Record], results: Results) -> list[str]:
    """Return, in a few words each and with what to do, the caveats that change how a headline is read.

    Args:
        run: the run directory.
        capture: the note of its capture.
        records: its finished probes.
        results: the tables of its analysis.
    """
    settings = capture["settings"]
    caveats = [doubt for doubt in capture["results"].get("warnings", ()) if "were cut" not in doubt]
    caveats += [doubt.rstrip(".") for record in records for doubt in record.results.get("doubts", ())]
    ends = _known_ends(run)
    share = float((ends == "length").mean()) if len(ends) else 0.0
    if share >= _MUCH_CUT:
        remedy = "" if settings["contexts"] else f" at {settings['max_new_tokens']} tokens (raise --max-new-tokens)"
        caveats.append(f"{share:.0%} of responses were cut{remedy}")
    ten = results.estimates[
        (results.estimates["analysis"] == "concentration")
        & (results.estimates["outcome"] == OUTCOME)
        & results.estimates["probe_id"].isin(results.primary["probe_id"])
    ]["estimate"].max()
    if ten >= _CONCENTRATED:
        caveats.append(f"ten positions hold {ten:.0%} of the gain's sum of squares (ranks say more than means)")
    draws = results.primary["placebo_draws"].min()
    if draws < _FEW_DRAWS:
        drawn = "one draw" if draws == 1 else f"{draws:.0f} draws"
        caveats.append(f"{drawn} of each placebo (--draws)")
    if (results.primary["status"] == TOO_LONG).any():
        caveats.append("a step was too long")
    return caveats


def _of_step(results: Results, probe_id: str) -> list[tuple[str, str]]:
    rows = results.estimates[results.estimates["probe_id"] == probe_id]
    floor = rows[rows["analysis"] == "noise_floor"]["estimate"]
    gain = rows[(rows["analysis"] == "mean") & (rows["term"] == "bank") & (rows["outcome"] == OUTCOME)]["estimate"]
    ten = rows[(rows["analysis"] == "concentration") & (rows["outcome"] == OUTCOME)]["estimate"]
    sentences = []
    if len(floor) and len(gain):
        text = (
            f"Rounding alone moves a position's KL by {floor.iloc[0]:.2g} nats on average; the mean gain of "
            f"{probe_id} is {gain.iloc[0]:.3g} nats."
        )
        sentences.append(("Noise floor", text))
    if len(ten):
        text = (
            f"Ten positions hold {ten.iloc[0]:.0%} of the variance of gain in {probe_id}: where that is "
            "much, means, slopes and R2 hang on them, and ranks say more."
        )
        sentences.append(("Few positions carry the variance", text))
    where = ("Where in the response", _position(results.buckets, probe_id))
    return [*sentences, where, ("Do conclusions hang on choices?", choices_text(results.estimates, probe_id))]


def _known_ends(run: Path) -> "pd.Series[str]":
    """Return how the bank's responses ended, of those of which it is known."""
    ends = _ends(run)
    return ends[ends != "unknown"]


def _ends(run: Path) -> "pd.Series[str]":
    if not (run / "contexts").exists():
        return pd.Series([], dtype=str)
    contexts = CONTEXTS.read(run / "contexts", ["split", "finish_reason"])
    return contexts[contexts["split"] == "bank"]["finish_reason"]


def choices_text(estimates: pd.DataFrame, probe_id: str) -> str:
    """Say how many specifications of each primary number of a step agree with the claim's; nothing where none could."""
    shares = specification_shares(estimates, probe_id)
    listed = "; ".join(
        f"{count} of {quantity}: {sign:.0%} and {side:.0%}" for quantity, (count, sign, side) in shares.items()
    )
    if not listed:
        return ""
    told = (
        f"How many specifications of {probe_id} there are under other choices, which share has the claim's sign, and "
        f"which an interval that lies as the claim's does, above 0, below or about it: {listed}."
    )
    of_specifications, of_bank = (rows_where(estimates, analysis=name)["n_prompts"].max() for name in (AGREEMENT, "q3"))
    of_part = f" They are of {of_specifications:,} of the bank's {of_bank:,} prompts."
    return told + (of_part if of_specifications < of_bank else "")


def _truncation(run: Path, settings: Mapping[str, Any]) -> str:
    ends, known = _ends(run), _known_ends(run)
    if ends.empty:
        return ""
    if known.empty:
        return "Whether the bank's responses ended or were cut is unknown: what may come later was not measured."
    whose = "" if len(known) == len(ends) else " whose end is known"
    cut = "cut" if settings["contexts"] else f"cut at {settings['max_new_tokens']} tokens"
    share = (known == "length").mean()
    return f"{share:.0%} of the bank's responses{whose} were {cut}: what comes later was not measured."


def _q3(estimates: pd.DataFrame) -> str:
    q3 = estimates[estimates["analysis"] == "q3"].set_index("term")["estimate"]
    return (
        f"Q3, the confident student far from its teacher, holds {q3['share']:.1%} of the bank: student entropy "
        f"at or below {q3['median_student_entropy']:.3g} nats and forward KL at or above "
        f"{q3['median_forward_kl']:.3g} nats."
    )


def _ties(saturation: pd.DataFrame) -> str:
    rows = saturation[saturation["k"].isna() | (saturation["k"] == K)]
    highest = rows[rows["score"] == "compatibility"]["share_at_highest"].iloc[0]
    clipped = f"The 5-95% clip puts {highest:.0%} of positions at the highest value of norm(C)"
    tied = rows[rows["tied_by_clip_at_03pct"] > 0]
    if tied.empty:
        return f"{clipped}; at a budget of 3% it ties no position at the edge."
    shares = zip(tied["score"], tied["tied_by_clip_at_03pct"], strict=True)
    names = ", ".join(f"{share:.0%} by {str(name).replace('_', ' ')}" for name, share in shares)
    left = tied["left_to_chance_at_03pct"].max()
    return (
        f"{clipped}. Were the clipped score all there is, ties would decide this much of a budget of 3%: {names}. The "
        "selectors here order what the clip ties by unclipped values, which leaves "
        f"{f'at most {left:.0%}' if left else 'nothing'} to chance."
    )


def _position(buckets: pd.DataFrame, probe_id: str) -> str:
    rows = buckets[(buckets["probe_id"] == probe_id) & (buckets["score"] == "position")]
    shares = rows[(rows["outcome"] == OUTCOME) & (rows["statistic"] == "share of total")]
    if shares["ci_low"].isna().any() or shares.empty:  # a total that is not told from 0 has no shares
        return ""
    tokens = rows[(rows["outcome"] == OUTCOME) & (rows["statistic"] == "share of tokens")]  # where positions were drawn
    counted = shares["n_positions"] / shares["n_positions"].sum() if tokens.empty else tokens["estimate"]
    opening = (shares["score_high"] <= 2).to_numpy()
    gain, places = (float(column[opening].sum()) for column in (shares["estimate"], counted))
    return (
        f"The first three response positions hold {gain:.0%} of the whole gain of {probe_id}, and {places:.0%} of the "
        "positions: opening habits may be most of what a step teaches."
    )

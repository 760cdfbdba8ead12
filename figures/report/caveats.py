"""What in this run's data keeps its numbers from being read plainly, each with its size."""

from pathlib import Path
from typing import Any

from teachdiag.artefacts import CONTEXTS
from teachdiag.figures.run_tables import RunTables, steps_of
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME


def caveats(run: Path, tables: RunTables, stages: dict[str, Any]) -> list[tuple[str, str]]:
    """Return headings and sentences, in a fixed order."""
    doubts = [("Can this pair answer?", f"{doubt}.") for doubt in stages["capture"]["results"].get("warnings", ())]
    found = [
        *doubts,
        ("Truncation", _truncation(run, stages)),
        ("Q3", _q3(tables)),
        ("Ties and saturation", _ties(tables)),
    ]
    for step in steps_of(tables):
        mine = tables.estimates[tables.estimates["probe_id"] == step.probe_id]
        floor = mine[mine["analysis"] == "noise_floor"]["estimate"]
        gain = mine[(mine["analysis"] == "mean") & (mine["term"] == "bank") & (mine["outcome"] == OUTCOME)]["estimate"]
        ten = mine[(mine["analysis"] == "concentration") & (mine["outcome"] == OUTCOME)]["estimate"]
        if len(floor) and len(gain):
            found.append(
                (
                    "Noise floor",
                    f"Rounding alone moves a position's KL by {floor.iloc[0]:.2g} nats on average; the mean gain of "
                    f"{step.probe_id} is {gain.iloc[0]:.3g} nats.",
                )
            )
        if len(ten):
            found.append(
                (
                    "Few positions carry the variance",
                    f"Ten positions hold {ten.iloc[0]:.0%} of the variance of gain in {step.probe_id}: where that is "
                    "much, means, slopes and R2 hang on them, and ranks say more.",
                )
            )
        found.append(("Where in the response", _position(tables, step.probe_id)))
    return [(heading, text) for heading, text in found if text]


def _truncation(run: Path, stages: dict[str, Any]) -> str:
    contexts = CONTEXTS.read(run / "contexts", ["split", "finish_reason"])
    ends = contexts[contexts["split"] == "bank"]["finish_reason"]
    known = ends[ends != "unknown"]
    if known.empty:
        return "Whether the bank's responses ended or were cut is unknown: what may come later was not measured."
    settings, whose = stages["capture"]["settings"], "" if len(known) == len(ends) else " whose end is known"
    cut = "cut" if settings["contexts"] else f"cut at {settings['max_new_tokens']} tokens"
    share = (known == "length").mean()
    return f"{share:.0%} of the bank's responses{whose} were {cut}: what comes later was not measured."


def _q3(tables: RunTables) -> str:
    return (
        f"Q3, the confident student far from its teacher, holds {tables.q3('share'):.1%} of the bank: student entropy "
        f"at or below {tables.q3('median_student_entropy'):.3g} nats and forward KL at or above "
        f"{tables.q3('median_forward_kl'):.3g} nats."
    )


def _ties(tables: RunTables) -> str:
    rows = tables.saturation
    rows = rows[rows["k"].isna() | (rows["k"] == K)]
    tied = [str(name).replace("_", " ") for name in rows[rows["tied_at_03pct"] > 0]["score"]]
    highest = rows[rows["score"] == "compatibility"]["share_at_highest"].iloc[0]
    clipped = f"The 5-95% clip puts {highest:.0%} of positions at the highest value of norm(C)"
    if not tied:
        return f"{clipped}; no budget of 3% hangs on ties."
    return f"{clipped}. At a budget of 3%, ties decide selection by {', '.join(tied)}."


def _position(tables: RunTables, probe_id: str) -> str:
    rows = tables.buckets
    rows = rows[(rows["probe_id"] == probe_id) & (rows["score"] == "position") & (rows["outcome"] == OUTCOME)]
    shares = rows[rows["statistic"] == "share of total"]
    first = shares[shares["score_high"] <= 2]["estimate"].sum()
    positions = shares[shares["score_high"] <= 2]["n_positions"].sum() / max(shares["n_positions"].sum(), 1)
    if shares["ci_low"].isna().any() or shares.empty:  # a total that is not told from 0 has no shares
        return ""
    return (
        f"The first three response positions hold {first:.0%} of the whole gain of {probe_id}, and {positions:.0%} of "
        "the positions: opening habits may be most of what a step teaches."
    )

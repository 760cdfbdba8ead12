"""The headline: what a run found in a few sentences, and what to do next. Made by rules from two tables, no more.

`docs/verdict.md` states the rules. In short: what selectors keep of the whole batch's gain comes first, at one budget
that was fixed before; then whether the step helps, and only if it does, the other primary claims. What to train on is
chosen among fixed candidates, with Holm's correction over them, and is left open where the run is too small to tell.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from teachdiag.analysis.bank.lookup import lookup, row_dicts, row_interval
from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.efficiency.kept_means import ORACLE, RANDOM
from teachdiag.analysis.kinds.kind import CONTENDER
from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.analysis.resampling.few_blocks import clear_side, p_above
from teachdiag.analysis.step.claims import PRIMARY_CLAIMS
from teachdiag.analysis.step.findings import NOT_JUDGED
from teachdiag.analysis.step.reach import precision_of_row
from teachdiag.analysis.step.step_length import REVERSED, TOO_LONG
from teachdiag.analysis.text.text_tables import capitalised
from teachdiag.glossary import GAINS, STATUSES
from teachdiag.settings import HEADLINE_BUDGETS, HEADLINE_SELECTORS, TrainSettings, headline_budget
from teachdiag.settings.base import flag
from teachdiag.signals import BASE, BASE_LABEL
from teachdiag.tables import rows_where

Row = Mapping[str, Any]

ENOUGH = 0.9  # of the whole batch's gain: what tokens must keep to be worth training on alone
EVERYTHING = "full"
NAMES = {BASE: BASE_LABEL, CONTENDER: "TA-OPD's learnable score", RANDOM: "random tokens", "entropy": "entropy"}
STEP = "One step"
_ONE_STEP = "One step says what one step does; `teachdiag train --sweep RECIPE` says whether training agrees."
_NOTHING = "This run judges no step beside placebos, and not what selectors keep of a batch's gain."
_LEVEL = 0.025  # one-sided, of the family of candidates
_OF_PAIR = (
    *("student", "teacher", "revision", "teacher_revision", "student_drop_layers", "end_of_text", "trust_remote_code"),
    *("student_adapter", "teacher_adapter", "teacher_load"),
    *("prompts", "data_file", "template_options", "max_new_tokens", "dtype"),
)


@dataclass(frozen=True)
class Headline:
    """What a run says first.

    `sentences`: what was found. `action`: what to do, in words. `command`: the same as a command, or ''.
    """

    sentences: tuple[str, ...]
    action: str
    command: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"sentences": list(self.sentences), "action": self.action, "command": self.command}


@dataclass(frozen=True)
class Choice:
    """What to train on: a selector at a budget, `EVERYTHING`, or '' where that is open, and why."""

    selector: str
    budget: float
    reason: str


def headline(
    primary: pd.DataFrame, efficiency: pd.DataFrame, run: Path, capture: Mapping[str, Any], updates: Mapping[str, str]
) -> Headline:
    """Say what a run found and what to do next.

    Args:
        primary: the table of primary claims.
        efficiency: the table of what selectors keep.
        run: the run, for commands.
        capture: the settings of its capture.
        updates: what to call the update of each probe that is one: see `update_name`.
    """
    efficiency = efficiency[efficiency["probe_id"] == efficiency["probe_id"].min()]  # of the first such probe
    sentences = [*efficiency_sentences(efficiency), *step_sentences(primary, updates)]
    if len(efficiency) or STEP in updates.values():
        sentences.append(_ONE_STEP)
    sentences = sentences or [_NOTHING]
    return Headline(tuple(sentences), *_action(efficiency, run, capture))


def update_name(record: Record) -> str:
    """Return what to call the update of a probe at the start of a sentence."""
    if record.kind == "checkpoint":
        return "Training"
    steps = record.settings.get("steps", 1)
    return STEP if steps == 1 else f"{steps} steps"


def efficiency_sentences(efficiency: pd.DataFrame) -> list[str]:
    """Say what raw KL, TA-OPD's score and random tokens keep at one budget, and whether TA-OPD's beats raw KL."""
    if efficiency.empty:
        return []
    rows = rows_where(efficiency, match="norm")
    shares = rows_where(rows, statistic="share")
    what = GAINS[str(efficiency["outcome"].iloc[0])]
    if shares.empty:
        (gain,) = row_dicts(rows_where(efficiency, statistic="gain"))
        harms = clear_side(row_interval(gain), gain["n_blocks"]) < 0
        told = "takes the student away from the teacher" if harms else f"has no {what} that is clearly told from 0"
        return [
            f"On held-out prompts a step on all tokens {told} ({row_interval(gain)} nats per unit of learning rate, to "
            "first order), so that no selector can keep a share of its gain."
        ]
    budget = headline_budget(shares["budget"])
    at = rows_where(shares, budget=budget)
    kept = [(name, lookup(at, selector=name)) for name in HEADLINE_SELECTORS if name in NAMES]
    first, *others = [(NAMES[name], _share(interval)) for name, interval in kept if interval is not None]
    listed = ", ".join(f"{name} {share}" for name, share in others)
    sentences = [
        f"At {budget:.0%} of the tokens {first[0]} keeps {first[1]} of the whole batch's {what} at equal step length"
        f"{f', {listed}' if listed else ''}."
    ]
    difference = lookup(rows, statistic="share_vs_base", selector=CONTENDER, budget=budget)
    if difference is not None:
        verdicts = {1: "is supported", -1: "is not supported", 0: "can be neither supported nor refuted"}
        verdict = verdicts[difference.side()]
        sentences.append(
            f"The claim that teachability beats raw KL {verdict} on this pair (difference {_share(difference)})."
        )
    return sentences


def step_sentences(primary: pd.DataFrame, updates: Mapping[str, str]) -> list[str]:
    """Say of every real step whether it helps, and if so what became of the other primary claims.

    Args:
        primary: the table of primary claims.
        updates: what to call the update of each probe.
    """
    by_probe: dict[str, list[Row]] = {}
    for row in row_dicts(primary):
        by_probe.setdefault(row["probe_id"], []).append(row)
    return [
        f"{f'{probe_id}: ' if len(by_probe) > 1 else ''}{sentence}"
        for probe_id, rows in by_probe.items()
        for sentence in _of_step(rows, updates[probe_id])
    ]


def choose(efficiency: pd.DataFrame) -> Choice:
    """Choose what to train on from the shares that fixed candidates keep at equal step length.

    A candidate keeps enough if its share is shown to be above `ENOUGH`, by Holm (1979) over all candidates, at a
    one-sided 2.5%. Tails are those of t with as many degrees of freedom as the bank has blocks, less one.
    """
    rows = rows_where(efficiency, match="norm", statistic="share")
    inside = rows["selector"].isin(set(HEADLINE_SELECTORS) - {ORACLE}) & rows["budget"].isin(HEADLINE_BUDGETS)
    candidates = rows[inside & rows["ci_low"].notna()].reset_index(drop=True)
    if candidates.empty:
        gain = row_dicts(rows_where(efficiency, statistic="gain"))[0]
        return Choice("", 1.0, f"This run is too small to tell which tokens to train on{_about(gain, 0.0)}")
    p_values = [p_above(row_interval(row), ENOUGH, row["n_blocks"]) for row in row_dicts(candidates)]
    enough = candidates[multipletests(p_values, alpha=_LEVEL, method="holm")[0]]
    if len(enough):
        return _smallest(enough)
    if (candidates["ci_high"] < ENOUGH).all():
        reason = f"Train on all tokens: no selector keeps {ENOUGH:.0%} of the gain at up to {_largest(candidates):.0%}"
        return Choice(EVERYTHING, 1.0, f"{reason} of them")
    return Choice("", 1.0, _too_small(candidates))


def train_command(run: Path, capture: Mapping[str, Any], choice: Choice) -> str:
    """Return the command that trains on a choice, with the pair's own options; '' where train cannot do as capture did.

    Args:
        run: the run directory.
        capture: the settings of its capture.
        choice: what to train on.
    """
    if capture.get("teacher_prompt", "same") != "same" or capture.get("contexts"):
        return ""
    words = ["--selector", choice.selector]
    if choice.selector != EVERYTHING:
        words += ["--budget", f"{choice.budget:g}"]
    defaults = {entry.name: entry.default for entry in fields(TrainSettings)}
    for name in _OF_PAIR:
        value = capture.get(name, defaults[name])
        if value != defaults[name]:
            words += [flag(name)] if value is True else [flag(name), str(value)]
    return _command("train", "--run", str(run), *words)


def _of_step(rows: Sequence[Row], update: str) -> list[str]:
    """Return the sentences on one update; `rows` are its primary claims, that the step helps first."""
    helps, *others = rows
    number = _number(helps)
    if helps["status"] == TOO_LONG or NOT_JUDGED in {row["status"] for row in rows}:
        return [str(helps["sentence"])]
    if helps["status"] in ("not shown", "unclear", "artefact"):
        why = {
            "not shown": "cannot be told from 0",
            "unclear": f"cannot be told from that of the placebo {helps['nearest_placebo']}",
            "artefact": f"is shown by the placebo {helps['nearest_placebo']} too",
        }[helps["status"]]
        return [f"What {_lower(update)} gains {why} ({number}): nothing else is claimed of it.{_needed(helps)}"]
    if helps["status"] == REVERSED:
        return [f"{update} took the student further from the teacher ({number}): nothing else is claimed of it."]
    beyond = ", beyond every placebo" if _known(helps["nearest_placebo"]) else ""
    return [f"{update} took {number} off the bank's mean KL{beyond}.", *_claimed(others)]


def _claimed(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the primary claims beside the first, by what became of them."""
    claims = {claim.finding: claim for claim in PRIMARY_CLAIMS}

    def told(row: Row) -> str:
        claim = claims[row["claim"]]
        what = claim.above if row["status"] == "not shown" or row["estimate"] > 0 else claim.below
        if row["status"] in ("not shown", "unclear"):
            return what  # a number in a sentence reads like a finding; the table has it
        return f"{what} ({'' if row['unit'] == 'nats' else 'rank correlation '}{_number(row)})"

    said = {status: [told(row) for row in rows if row["status"] == status] for status in STATUSES}
    placebos = dict.fromkeys(str(row["nearest_placebo"]) for row in rows if row["status"] == "unclear")
    stated = [*said["holds"], *said[REVERSED]]
    sentences = {
        "": stated and [capitalised("; ".join(stated))],
        "Not told on this run: whether ": said["not shown"],
        f"Not told from the placebo {' or '.join(placebos)}: that ": said["unclear"],
        "A placebo shows it too: ": said["artefact"],
    }
    return [f"{opening}{'; '.join(parts)}." for opening, parts in sentences.items() if parts]


def _action(efficiency: pd.DataFrame, run: Path, capture: Mapping[str, Any]) -> tuple[str, str]:
    """Return what to do next, in words and as a command."""
    if efficiency.empty:
        action = "Which tokens to train on was not measured: measure what each selector keeps"
        return action, _command("probe", "--run", str(run), "--kind", "efficiency")
    gain = row_dicts(rows_where(efficiency, statistic="gain"))[0]
    if clear_side(row_interval(gain), gain["n_blocks"]) < 0:
        return "Choose another loss: a step on all tokens takes the student away from the teacher", ""
    choice = choose(efficiency)
    if not choice.selector:
        return choice.reason, _command("plan", "--from", str(run))
    return choice.reason, train_command(run, capture, choice)


def _smallest(enough: pd.DataFrame) -> Choice:
    """Choose, among candidates that keep enough, the smallest budget, and there random tokens, or who keeps most."""
    at = enough[enough["budget"] == enough["budget"].min()].sort_values("estimate", ascending=False, kind="stable")
    names = list(at["selector"])
    chosen = row_dicts(at)[names.index(RANDOM) if RANDOM in names else 0]
    name, budget = chosen["selector"], chosen["budget"]
    how = "taken at random (no selector is needed)" if name == RANDOM else f"chosen by {name}"
    reason = f"Train on {budget:.0%} of the tokens, {how}: they keep {_share(row_interval(chosen))} of the gain"
    return Choice(name, budget, reason)


def _largest(candidates: pd.DataFrame) -> float:
    return float(candidates["budget"].max())


def _too_small(candidates: pd.DataFrame) -> str:
    """Say how many prompts would tell whether the candidate that keeps most keeps enough."""
    best = row_dicts(candidates.sort_values(["estimate", "budget"], ascending=[False, True]))[0]
    what = f"This run is too small to tell which tokens keep {ENOUGH:.0%} of the gain"
    return what + _about(best, ENOUGH)


def _about(row: Row, apart_from: float) -> str:
    """Say how many prompts tell a number from a value with a power of 80%, if more than there are."""
    precision = precision_of_row(row, apart_from)
    needed = precision.prompts_needed(abs(row["estimate"] - apart_from)) if precision else None
    if not needed or needed <= row["n_prompts"]:
        return ""
    return f": about {needed} bank prompts would be needed, of which it has {row['n_prompts']}"


def _needed(row: Row) -> str:
    needed = row["prompts_needed"]
    if not _known(needed) or needed <= row["n_prompts"]:
        return ""
    return f" This run is too small to tell: about {int(needed)} bank prompts would be needed."


def _share(interval: Interval) -> str:
    if not interval.known:
        return f"{interval.estimate:.2f}"
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _number(row: Row) -> str:
    return f"{row_interval(row)}{' nats' if row['unit'] == 'nats' else ''}"


def _known(value: str | float | None) -> bool:
    return bool(pd.notna(value))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _command(*words: str) -> str:
    return shlex.join(["teachdiag", *words])

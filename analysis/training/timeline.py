"""A monitored training as it went: how its signal is used up, and whether masks still mean what they meant at first."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from teachdiag.artefacts import CANARY_POSITIONS, MONITOR, TIMELINE
from teachdiag.artefacts.monitored import CANARY
from teachdiag.errors import ArtefactError, EstimationError
from teachdiag.markdown import bullets, markdown_table
from teachdiag.notes import write_note
from teachdiag.scores import Array, Mask
from teachdiag.selectors import Selector, Tokens, resolve_selector, select
from teachdiag.settings import HEADLINE_K, TimelineSettings
from teachdiag.signals import signal_named
from teachdiag.tables import shard_files, write_parquet_and_csv, write_text

Ratio = tuple[float, float | None, float | None]  # estimate, and the ends of its interval

ALL = "all"
HALF = 0.5  # overlap below which most of what a mask kept at first is kept no longer
_95 = 1.96  # standard errors


def run_timeline(folder: Path, settings: TimelineSettings) -> dict[str, Any]:
    """Write the table `timeline` of a monitored training, and what it says: `timeline.md`, and as data.

    Returns:
        `steps`, and `sentences`.

    Raises:
        ArtefactError: the canary was looked at fewer than two times, or lacks a column that a selector reads.
        SettingsError: there is no such selector.
    """
    selectors = {name: resolve_selector(name) for name in settings.selectors}
    looks = read_looks(folder, selectors.values())
    rows = timeline_rows(looks, selectors, settings.budget)
    table = TIMELINE.build_rows(rows)
    write_parquet_and_csv(table, folder / "analysis/timeline")
    monitored = MONITOR.read(folder / MONITOR.folder)
    frame: pd.DataFrame = table.to_pandas()
    sentences = timeline_sentences(frame, monitored)
    write_note({"sentences": sentences}, folder / "analysis/timeline.json")
    parts = [f"# {folder.name}: what is left to be learned", bullets(sentences), overlap_table(frame)]
    parts.insert(2, "![What is left, and what masks still keep](figures/timeline.svg)")
    write_text("\n\n".join(parts) + "\n", folder / "timeline.md")
    return {"steps": list(looks), "sentences": sentences}


def read_looks(folder: Path, selectors: Iterable[Selector]) -> dict[int, pa.Table]:
    """Return the canary's positions at every look, by step: the columns that selectors read, prompt and forward KL.

    Raises:
        ArtefactError: there are fewer than two looks.
    """
    read = {column for selector in selectors for column in selector.columns(HEADLINE_K)}
    names = [name for name in CANARY_POSITIONS.schema.names if name in {*read, "step", "prompt_id", "forward_kl"}]
    tables = [CANARY_POSITIONS.read_arrow(file, names) for file in shard_files(folder / CANARY_POSITIONS.folder)]
    looks = {table["step"][0].as_py(): table.drop_columns("step") for table in tables}
    if len(looks) < 2:
        raise ArtefactError(
            f"{folder} has {len(looks)} looks at a canary, and a timeline needs two: give the folder of a "
            "teachdiag.Monitor with a canary, or --checkpoints"
        )
    return dict(sorted(looks.items()))


def timeline_rows(
    looks: Mapping[int, pa.Table], selectors: Mapping[str, Selector], budget: float
) -> list[dict[str, Any]]:
    """Rows of `timeline`: every selector at every look, beside the first."""
    first = next(iter(looks.values()))
    prompts = np.unique(first["prompt_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    before = first["forward_kl"].to_numpy().astype(np.float64)
    everything = np.ones(len(before), bool)
    at_first = {name: _mask(first, selector, budget) for name, selector in selectors.items()}
    if undefined := [name for name, mask in at_first.items() if mask is None]:
        raise ArtefactError(f"selector {undefined[0]} is not defined at the first look: leave it out of --selector")
    rows = []
    for step, look in looks.items():
        now = look["forward_kl"].to_numpy().astype(np.float64)
        masks = {name: _mask(look, selector, budget) for name, selector in selectors.items()}
        for name, chosen in {ALL: everything, **at_first}.items():
            assert chosen is not None, "refused above"
            kept = masks.get(name)
            overlap = None if kept is None else ratio(chosen & kept, chosen, prompts)
            left = ratio(now * chosen, before * chosen, prompts)
            rows.append(
                {"step": step, "selector": name, "budget": 1.0 if name == ALL else budget}
                | _named("overlap", overlap or (None, None, None))
                | _named("left", left)
                | {"n_positions": int(chosen.sum()), "n_prompts": len(np.unique(prompts))}
            )
    return rows


def ratio(part: Array | Mask, whole: Array | Mask, prompts: np.ndarray) -> Ratio:
    """Ratio of two sums over positions, and its 95% interval over prompts; no interval from a single prompt.

    With A_i and B_i the sums of prompt i, R = A / B, and its standard error, linearised, is
    sqrt(n / (n - 1) sum (A_i - R B_i)^2) / B (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    a, b = np.bincount(prompts, part), np.bincount(prompts, whole)
    share, n = float(a.sum() / b.sum()), len(a)
    if n < 2:
        return share, None, None
    half = _95 * float(np.sqrt(n / (n - 1) * np.square(a - share * b).sum()) / b.sum())
    return share, share - half, share + half


def timeline_sentences(rows: pd.DataFrame, monitored: pd.DataFrame) -> list[str]:
    """What is left, how long each mask held, and which alarms were raised."""
    last = rows["step"].max()
    at_last = rows[rows["step"] == last].set_index("selector")
    whole = at_last.loc[ALL]
    sentences = [
        f"After {last} steps {_share(whole, 'left')} of KL(teacher || student) is left on "
        f"{int(whole['n_positions']):,} positions of {int(whole['n_prompts'])} prompts{_learnable(monitored)}."
    ]
    for name in (name for name in at_last.index if name != ALL):
        of_selector, row = rows[rows["selector"] == name], at_last.loc[name]
        kept = _share(row, "overlap") if pd.notna(row["overlap"]) else "nothing that is defined"
        fallen = of_selector[of_selector["overlap"] < HALF]["step"]
        held = f"it first fell below a half at step {fallen.iloc[0]}" if len(fallen) else "it never fell below a half"
        sentences.append(
            f"Of what `{name}` kept at first, at {row['budget']:.0%}, it keeps {kept} at step {last} "
            f"({row['budget']:.0%} by chance); {held}. On these positions {_share(row, 'left')} of "
            "the KL is left."
        )
    raised = monitored[monitored["alarms"] != ""]
    for (population, alarm), steps in _alarms(raised).items():
        sentences.append(f"Alarm on the {population}: {alarm}, from step {min(steps)} on ({len(steps)} looks).")
    return sentences


def overlap_table(rows: pd.DataFrame) -> str:
    """Overlap with the first mask, a row a look and a column a selector, as Markdown."""
    wide = rows[rows["selector"] != ALL].pivot_table(index="step", columns="selector", values="overlap", sort=False)
    shown = wide.map(lambda value: f"{value:.2f}").rename(columns=lambda name: signal_named(name).label)
    return markdown_table(shown.reset_index())


def _mask(look: pa.Table, selector: Selector, budget: float) -> Mask | None:
    """What a selector keeps; None where its scores are not defined, as with a constant C."""
    try:
        return select(Tokens.from_table(look), selector, budget).kept
    except EstimationError:
        return None


def _named(name: str, interval: tuple[float | None, ...]) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_ci_low", f"{name}_ci_high"), interval, strict=True))


def _share(row: pd.Series, name: str) -> str:
    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
    return f"{row[name]:.0%}" if pd.isna(low) else f"{row[name]:.0%} [{low:.0%}, {high:.0%}]"


def _learnable(monitored: pd.DataFrame) -> str:
    looks = monitored[(monitored["population"] == CANARY) & monitored["learnable"].notna()].sort_values("step")
    if len(looks) < 2 or looks["learnable"].iloc[0] == 0:
        return ""
    learnable, incompatible = (looks[name].iloc[-1] / looks[name].iloc[0] for name in ("learnable", "incompatible"))
    return f", and of the mean scores at first {learnable:.0%} of D^L and {incompatible:.0%} of D^I"


def _alarms(raised: pd.DataFrame) -> dict[tuple[str, str], list[int]]:
    steps: dict[tuple[str, str], list[int]] = {}
    for row in raised.sort_values("step").to_dict("records"):
        for alarm in row["alarms"].split(","):
            steps.setdefault((row["population"], alarm), []).append(row["step"])
    return steps

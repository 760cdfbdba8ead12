"""What training gave: shares of right answers by arm, and their differences, paired by training seed and prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, intervals
from teachdiag.analysis.resampling.multiplicity import add_q_values, bootstrap_p
from teachdiag.artefacts import EVAL_SCORES, PROBE_VERSUS_TRAINING, SELECTION, TRAIN_STEPS, TRAINING
from teachdiag.runs import Stage, joining
from teachdiag.scores import Array
from teachdiag.seeds import derive_seed
from teachdiag.tables import write_parquet_and_csv

DRAWS = 2000
_REFERENCES = ("full", "random", "base")
_MEASURES = ("mean@k", "pass@1", "unparseable")
_LEADING = "mean@k"
_WHOLE = "all"  # what the probe calls the batch without a selection, which training calls full

Key = tuple[str, float | None]  # arm, budget


@dataclass(frozen=True)
class Answers:
    """One arm's answers at one budget.

    `shares`: by measure, shape (seeds, prompts), the mean over answers; a model that was not trained has one row.
    """

    shares: dict[str, Array]
    seeds: tuple[int, ...]
    samples: int
    note: str

    def seen(self, measure: str, seeds: tuple[int, ...]) -> Array:
        """Shares at these seeds; a model that was not trained is the same at each."""
        values = self.shares[measure]
        if not self.seeds:
            return np.repeat(values, len(seeds), axis=0) if seeds else values
        return values[[self.seeds.index(seed) for seed in seeds]]


def analyze_training(run: Path) -> pd.DataFrame:
    """Write the table `training` of a run, and beside the probe's selectors, where the run has them; return the first.

    Raises:
        ArtefactError: there are no answers.
    """
    for name in ("train", "evaluate"):
        if (stage := Stage(run, name)).note.exists():
            stage.require()
    scores = EVAL_SCORES.read(run / "eval_scores")
    rows = [
        row for name, of_benchmark in scores.groupby("benchmark", sort=True) for row in _rows(str(name), of_benchmark)
    ]
    rows += _kept(run, scores)
    add_q_values(rows, ("benchmark", "measure", "against"))
    table = TRAINING.build_rows(rows)
    frame: pd.DataFrame = table.to_pandas()
    with joining(run):
        write_parquet_and_csv(table, run / "analysis/training")
        if SELECTION.file(run).exists():
            compared = compare_with_probe(frame, SELECTION.read(SELECTION.file(run)))
            write_parquet_and_csv(PROBE_VERSUS_TRAINING.build_rows(compared), run / "analysis/probe_versus_training")
    return frame


def crossed_weights(seeds: int, prompts: int, draws: int = DRAWS) -> tuple[Array, Array]:
    """Return how often each training seed and each prompt counts: shapes (1 + draws, seeds) and (1 + draws, prompts).

    Both are drawn on their own (Owen, 2007, the pigeonhole bootstrap), as every seed answers every prompt. Row 0 holds
    ones. The same numbers of seeds and prompts give the same draws, so that all differences are paired.
    """
    rng = np.random.default_rng(derive_seed(0, "training", seeds, prompts))
    counts = [
        np.vstack([np.ones(size), rng.multinomial(size, np.full(size, 1 / size), size=draws)])
        for size in (seeds, prompts)
    ]
    return counts[0], counts[1]


def crossed_means(values: Array, draws: int = DRAWS) -> Array:
    """Mean over seeds and prompts, shape (1 + draws,), of values of shape (seeds, prompts); the estimate first."""
    by_seed, by_prompt = crossed_weights(values.shape[0], values.shape[1], draws)
    means: Array = np.einsum("ds,sp,dp->d", by_seed, values, by_prompt, optimize=True) / values.size
    return means


def compare_with_probe(training: pd.DataFrame, selection: pd.DataFrame) -> list[dict[str, Any]]:
    """Put the probe's gains (equal norm) and the training's shares of right answers side by side, budget by budget."""
    gains = selection[(selection["statistic"] == "mean_gain") & (selection["match"] == "norm")]
    gains = gains.assign(arm=gains["selector"].replace(_WHOLE, "full"))
    right = training[(training["measure"] == _LEADING) & (training["against"] == "")]
    both = gains.merge(right, on=["arm", "budget"], suffixes=("_probe", ""))
    rows: list[dict[str, Any]] = []
    for (probe, benchmark, budget), compared in both.groupby(["probe_id", "benchmark", "budget"], sort=True):
        ranks = {name: compared[name].rank(ascending=False) for name in ("estimate_probe", "estimate")}
        known = len(compared) > 2 and all(rank.std() > 0 for rank in ranks.values())
        correlation = float(ranks["estimate_probe"].corr(ranks["estimate"])) if known else None
        compared = compared.assign(**{f"{name}_rank": rank for name, rank in ranks.items()})
        for row in compared.sort_values("estimate_probe", ascending=False).to_dict("records"):
            rows.append(
                {"probe_id": probe, "benchmark": benchmark, "arm": row["arm"], "budget": budget}
                | {"gain": row["estimate_probe"], "gain_rank": row["estimate_probe_rank"]}
                | {f"gain_{end}": _or_none(row[f"{end}_probe"]) for end in ("ci_low", "ci_high")}
                | {"right": row["estimate"], "right_rank": row["estimate_rank"]}
                | {f"right_{end}": _or_none(row[end]) for end in ("ci_low", "ci_high")}
                | {"rank_correlation": correlation}
            )
    return rows


def _rows(benchmark: str, scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    arms = {
        (str(arm), _or_none(budget)): _answers(arm_answers)
        for (arm, budget), arm_answers in scores.groupby(["arm", "budget"], sort=False, dropna=False)
    }
    for key, arm_answers in arms.items():
        for measure in _MEASURES:
            yield _row(benchmark, key, measure, "", arm_answers, arm_answers.shares[measure])
        for against in _REFERENCES:
            other = arms.get((against, key[1] if against == "random" else 1.0 if against == "full" else None))
            if other and other is not arm_answers and arm_answers.seeds:
                seeds = tuple(s for s in arm_answers.seeds if s in other.seeds or not other.seeds)
                if seeds:
                    difference = arm_answers.seen(_LEADING, seeds) - other.seen(_LEADING, seeds)
                    yield _row(benchmark, key, _LEADING, against, arm_answers, difference)


def _row(benchmark: str, key: Key, measure: str, against: str, answers: Answers, values: Array) -> dict[str, Any]:
    values = values[:, ~np.isnan(values).any(axis=0)]  # a prompt that some seed did not answer; the note says so
    draws = crossed_means(values)
    interval, few = intervals(draws[:, None])[0], values.shape[1] < MIN_PROMPTS
    over = "training seeds x prompts" if answers.seeds else "prompts"
    how = f"no interval from {values.shape[1]} prompts" if few else f"bootstrap over {over}, {DRAWS} draws, percentile"
    single = "; one training seed, whose luck the interval does not cover" if len(answers.seeds) == 1 else ""
    return {
        **{"benchmark": benchmark, "arm": key[0], "budget": key[1], "measure": measure, "against": against},
        "estimate": interval.estimate,
        "ci_low": None if few else interval.low,
        "ci_high": None if few else interval.high,
        "p_value": bootstrap_p(draws) if against and not few else None,
        "method": f"mean over seeds, prompts and answers; {how}{single}",
        "n_seeds": len(answers.seeds),
        "n_prompts": values.shape[1],
        "n_samples": answers.samples,
        "note": answers.note,
    }


def _answers(scores: pd.DataFrame) -> Answers:
    """Arrange one arm's answers by seed and prompt, and say what is odd about them."""
    values = {
        "mean@k": (scores["outcome"] == "right").astype(float),
        "pass@1": (scores["outcome"] == "right").astype(float).where(scores["sample"] == 0),
        "unparseable": (scores["outcome"] == "unparseable").astype(float),
    }
    seeds = tuple(int(seed) for seed in sorted(scores["seed"].dropna().unique()))
    by = [scores["seed"].fillna(-1).astype(int), scores["prompt_id"]]
    table = pd.DataFrame(values).groupby(by).mean()
    samples = int(scores["sample"].max()) + 1
    shares = {name: table[name].unstack().to_numpy(float) for name in values}  # noqa: PD010 (rows are seeds)
    return Answers(shares, seeds, samples, _oddity(scores, shares[_LEADING], samples))


def _oddity(scores: pd.DataFrame, right: Array, samples: int) -> str:
    """Say what independent, complete runs would not show: repeated seeds, or an impossible mean."""
    notes = []
    due = right.size * samples
    if len(scores) != due or not attainable(float(np.nanmean(right)), due):
        notes.append(f"{len(scores)} answers where {due} are due")
    given_up = int(scores["given_up"].sum()) if "given_up" in scores else 0
    if given_up:
        notes.append(f"{given_up} answers could not be judged in time, and are unparseable")
    if len(right) > 1 and _repeated(scores):
        notes.append("all seeds give the same answers: they are no independent runs")
    elif len(right) > 1 and np.ptp(right.mean(1)) == 0:
        notes.append("the seeds' means do not vary")
    return "; ".join(notes)


def _repeated(scores: pd.DataFrame) -> bool:
    """Whether every answer has the same outcome and length at all seeds."""
    distinct = scores.groupby(["prompt_id", "sample"])[["outcome", "answer_tokens"]].nunique()
    return bool((distinct == 1).all(axis=None))


def attainable(mean: float, answers: int, decimals: int = 9) -> bool:
    """Whether a mean of so many answers, each 0 or 1, can round to this number (arithmetic of reported results)."""
    nearest = round(mean * answers) / answers
    return bool(abs(nearest - mean) <= 0.5 * 10.0**-decimals)


def _kept(run: Path, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The share of positions that each arm really kept, mean over steps and seeds."""
    if not any((run / "train_steps").glob("*.parquet")):
        return []
    steps = TRAIN_STEPS.read(run / "train_steps", ["arm", "budget", "seed", "keep"])
    blank = {"against": "", "ci_low": None, "ci_high": None, "p_value": None, "note": ""}
    return [
        blank
        | {"benchmark": scores["benchmark"].iloc[0], "arm": arm, "budget": _or_none(budget), "measure": "keep"}
        | {"estimate": float(of_arm["keep"].mean()), "method": "mean over steps and seeds"}
        | {"n_seeds": int(of_arm["seed"].nunique()), "n_prompts": 0, "n_samples": 0}
        for (arm, budget), of_arm in steps.groupby(["arm", "budget"], sort=False, dropna=False)
    ]


def _or_none(value: Any) -> Any:  # noqa: ANN401 (a cell of a table)
    return None if pd.isna(value) else value

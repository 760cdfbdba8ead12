"""Training's tables against plain loops, a closed form, and answers that are odd."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from teachdiag.analysis.training.accuracy import (
    _answers,
    _rows,
    analyze_training,
    attainable,
    compare_with_probe,
    crossed_means,
    crossed_weights,
)
from teachdiag.analysis.training.training_block import accuracy_table, probe_sentences, probe_table, training_sentences
from teachdiag.artefacts import EVAL_SCORES, TRAINING
from teachdiag.tables import write_parquet


def _scores(right: dict[str, np.ndarray], budgets: dict[str, float | None]) -> pd.DataFrame:
    """Answers from arrays of shape (seeds, prompts, samples), 1 right, 0 wrong, -1 unparseable."""
    rows = []
    for arm, own in right.items():
        for place, value in np.ndenumerate(own):
            seed, prompt, sample = place
            rows.append(
                {
                    "arm": arm,
                    "budget": budgets[arm],
                    "seed": None if budgets[arm] is None else seed,
                    "benchmark": "b",
                    "prompt_id": f"p{prompt:02d}",
                    "sample": sample,
                    "outcome": {1: "right", 0: "wrong", -1: "unparseable"}[int(value)],
                    "given_up": False,
                    "answer_tokens": 3 + seed + prompt,
                    "finish_reason": "stop",
                    "sampling_seed": 7,
                }
            )
    frame = EVAL_SCORES.build_rows(rows).to_pandas()
    return frame.astype({"seed": "float64"})


def _write(run: Path, scores: pd.DataFrame) -> None:
    columns = {name: scores[name].tolist() for name in EVAL_SCORES.schema.names}
    columns["seed"] = [None if np.isnan(value) else int(value) for value in columns["seed"]]
    columns["budget"] = [None if np.isnan(value) else value for value in columns["budget"]]
    write_parquet(EVAL_SCORES.build(columns), run / "eval_scores/a.parquet")


BUDGETS = {"base": None, "full": 1.0, "random": 0.1, "learnable": 0.1}


def _world(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.2, 0.8, 20)
    found = {}
    for arm, lift in (("base", 0.0), ("full", 0.1), ("random", 0.05), ("learnable", 0.15)):
        seeds = 1 if arm == "base" else 4
        found[arm] = (rng.uniform(size=(seeds, 20, 3)) < (hard + lift)[None, :, None]).astype(int)
    found["full"][0, 0, 0] = -1
    return found


def test_shares_and_paired_differences_are_those_of_plain_loops() -> None:
    right = _world()
    rows = {(r["arm"], r["measure"], r["against"]): r for r in _rows("b", _scores(right, BUDGETS))}
    mean = {arm: (own == 1).mean() for arm, own in right.items()}
    for arm in right:
        assert rows[arm, "mean@k", ""]["estimate"] == pytest.approx(mean[arm])
        assert rows[arm, "pass@1", ""]["estimate"] == pytest.approx((right[arm][:, :, 0] == 1).mean())
    assert rows["full", "unparseable", ""]["estimate"] == pytest.approx(1 / right["full"].size)
    for against in ("full", "random", "base"):
        row = rows["learnable", "mean@k", against]
        assert row["estimate"] == pytest.approx(mean["learnable"] - mean[against])
        theirs = np.broadcast_to((right[against] == 1).mean(2), (4, 20))
        by_seed, by_prompt = crossed_weights(4, 20)
        difference = (right["learnable"] == 1).mean(2) - theirs
        draws = [
            sum(ws[s] * wp[p] * difference[s, p] for s in range(4) for p in range(20)) / 80
            for ws, wp in zip(by_seed[1:200], by_prompt[1:200], strict=True)
        ]
        np.testing.assert_allclose(crossed_means(difference)[1:200], draws, atol=1e-12)
        assert row["ci_low"] < row["estimate"] < row["ci_high"]
    assert ("random", "mean@k", "random") not in rows
    assert ("base", "mean@k", "full") not in rows


def test_the_crossed_bootstrap_has_the_pigeonhole_variance() -> None:
    """Its variance, to leading order, is the sum of seeds', prompts' and the rest's parts (Owen, 2007)."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(6, 1)) + 2 * rng.normal(size=(1, 40)) + rng.normal(size=(6, 40))
    draws = crossed_means(values, draws=20_000)[1:]
    rows, columns = values.mean(1), values.mean(0)
    rest = values - rows[:, None] - columns[None] + values.mean()
    expected = rows.var() / 6 + columns.var() / 40 + rest.var() / 240
    assert draws.var() == pytest.approx(expected, rel=0.05)


def test_odd_answers_are_noted(tmp_path: Path) -> None:
    right = _world()
    scores = _scores(right, BUDGETS)
    assert _answers(scores[scores["arm"] == "random"]).note == ""
    alike = _scores({"full": np.repeat(right["full"][:1], 4, axis=0)}, BUDGETS).assign(answer_tokens=5)
    assert "all seeds give the same answers" in _answers(alike).note
    lacking = scores[scores["arm"] == "learnable"].iloc[1:]
    assert "239 answers where 240 are due" in _answers(lacking).note
    flat = np.zeros((2, 20, 1), int)
    flat[0, 0], flat[1, 1] = 1, 1
    assert "the seeds' means do not vary" in _answers(_scores({"full": flat}, BUDGETS)).note


def test_a_mean_that_so_many_runs_cannot_give() -> None:
    assert attainable(0.1667, 30, decimals=4)
    assert attainable(0.1833, 60, decimals=4)
    assert not attainable(0.1833, 30, decimals=4)


def test_tables_of_a_run_and_too_few_prompts(tmp_path: Path) -> None:
    right = {arm: own[:, :5] for arm, own in _world().items()}
    _write(tmp_path, _scores(right, BUDGETS))
    found = analyze_training(tmp_path)
    assert found["ci_low"].isna().all()
    assert found["method"].str.contains("no interval from 5 prompts").all()
    assert len(TRAINING.read(tmp_path / "analysis/training.parquet")) == len(found)


def test_the_probes_ranking_beside_the_trainings() -> None:
    training = pd.DataFrame(
        [
            {"benchmark": "b", "arm": arm, "budget": 0.1, "measure": "mean@k", "against": "", "estimate": right}
            for arm, right in (("random", 0.3), ("tip", 0.5), ("learnable", 0.6), ("entropy", 0.4))
        ]
    ).assign(ci_low=0.1, ci_high=np.nan)
    selection = pd.DataFrame(
        [
            {
                "probe_id": "s",
                "selector": arm,
                "budget": 0.1,
                "match": "norm",
                "statistic": "mean_gain",
                "estimate": gain,
            }
            for arm, gain in (("random", 1.0), ("tip", 3.0), ("learnable", 2.0), ("pgt", 9.0), ("entropy", 0.5))
        ]
    ).assign(ci_low=0.0, ci_high=5.0)
    rows = compare_with_probe(training, selection)
    assert [row["arm"] for row in rows] == ["tip", "learnable", "random", "entropy"]
    assert [row["gain_rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["right_rank"] for row in rows] == [2, 1, 4, 3]
    assert rows[0]["rank_correlation"] == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert rows[0]["right_ci_high"] is None


def test_sentences_say_what_the_tables_hold(tmp_path: Path) -> None:
    """A world in which TA-OPD beats random positions and loses to full OPD by far."""
    rng = np.random.default_rng(1)
    right = {
        arm: (rng.uniform(size=(1 if arm == "base" else 4, 60, 3)) < share).astype(int)
        for arm, share in (("base", 0.3), ("full", 0.9), ("random", 0.2), ("learnable", 0.6), ("tip", 0.62))
    }
    _write(tmp_path, _scores(right, BUDGETS | {"tip": 0.1}))
    rows = analyze_training(tmp_path)
    told = training_sentences(rows)
    mean = {arm: own.mean() for arm, own in right.items()}
    assert len(told) == 2
    assert told[0].startswith(
        "At 10% of the positions, `learnable` (TA-OPD) is right less often than full OPD (difference -0."
    )
    assert "and is right more often than random positions (difference 0." in told[0]
    leader = "tip" if mean["tip"] > mean["learnable"] else "learnable"
    assert f"Best of 3 at 10% (the best of many flatters itself): `{leader}` with {mean[leader]:.3g} [" in told[1]
    table = accuracy_table(rows).set_index("positions")
    assert table.loc["full", "100%"].startswith(f"{mean['full']:.3g} [")
    assert table.loc["learnable", "10%"].startswith(f"{mean['learnable']:.3g} [")
    assert table.loc["base (not trained here)", "100%"].startswith(f"{mean['base']:.3g} [")
    both = pd.DataFrame(
        [
            {"arm": arm, "budget": 0.1, "gain": gain, "right": share, "gain_rank": 3 - gain, "right_rank": rank}
            for arm, gain, share, rank in (("learnable", 2, 0.6, 2), ("tip", 1, 0.62, 1), ("random", 0, 0.2, 3))
        ]
    ).assign(
        rank_correlation=0.5, **dict.fromkeys(("gain_ci_low", "gain_ci_high", "right_ci_low", "right_ci_high"), 0.1)
    )
    assert probe_sentences(both) == [
        "At 10%: one step gains most on `learnable`, which is number 2 after training; `tip` trains best; Spearman "
        "0.50 over 3 selectors."
    ]
    assert probe_table(both, 0.1)["selector"].tolist() == ["learnable", "tip", "random"]

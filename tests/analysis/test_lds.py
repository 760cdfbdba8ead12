"""Token-LDS: correlations and their draws against loops and scipy, and masks whose truth is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import World
from planted_interventions import plant_bank, plant_lds
from scipy.stats import spearmanr

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.kinds.lds import lds_rows, lds_sentences, lds_table, load_masks, mask_correlations, mask_counts
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.placebo_draws import pool_draws
from teachdiag.artefacts import ESTIMATES, INTERVENTIONS, POSITIONS
from teachdiag.errors import ArtefactError
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from teachdiag.tables import shard_path, write_parquet

WORLD = World(prompts=10, positions=25)
DRAWS = Resampling(0, 200, 10)


def _planted(folder: Path, masks: int = 120, noise: float = 0.0, truth: str = "forward_kl") -> Path:
    run = folder / "run"
    positions = plant_bank(run, WORLD)
    values = positions.loc[positions["split"] == "update", truth].to_numpy()
    plant_lds(run, positions, values, masks=masks, noise=noise)
    return run


def _rows(run: Path, analysis: str = "token_lds") -> pd.DataFrame:
    rows = pd.DataFrame(lds_rows(run, "masks", DRAWS))
    return rows[rows["analysis"] == analysis].set_index("term")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _planted(tmp_path_factory.mktemp("lds"), noise=0.02)


def test_the_correlation_is_spearmans_over_masks(run: Path) -> None:
    table = INTERVENTIONS.read(run / "interventions")
    update = POSITIONS.read(run / "positions").query("split == 'update'").set_index(["context_id", "position"])
    quantiles = {name: np.quantile(update[name], [0.05, 0.95]) for name in ("disagreement_k16", "compatibility_k16")}
    d, c = (np.clip((update[n] - low) / (high - low), 0, 1) for n, (low, high) in quantiles.items())
    rows = _rows(run)
    for term, score in (("learnable", d * c), ("incompatible", d * (1 - c)), ("forward_kl", update["forward_kl"])):
        sums = [
            sum(score.loc[(context, position)] for context, position in zip(mask[0], mask[1], strict=True))
            for mask in zip(table["kept_context_ids"], table["kept_positions"], strict=True)
        ]
        assert rows["estimate"][term] == pytest.approx(spearmanr(sums, table["mean_gain"]).statistic, abs=1e-12)
    assert rows["n_positions"].unique().tolist() == [75]
    assert rows["n_prompts"].unique().tolist() == [3]


def test_draws_are_those_of_stacked_masks(run: Path) -> None:
    masks = load_masks(run, "masks")
    sums = masks.kept @ np.column_stack([masks.scores["learnable", 16], masks.scores["forward_kl", None]])
    counts = mask_counts(len(masks), DRAWS)
    drawn = mask_correlations(masks.gain, sums, counts)
    assert counts.sum(axis=1).tolist() == [120] * 201
    for draw in range(12):
        stacked = np.repeat(np.arange(120), counts[draw].astype(int))
        for column in range(2):
            expected = spearmanr(sums[stacked, column], masks.gain[stacked]).statistic
            assert drawn[draw, column] == pytest.approx(expected, abs=1e-12)
    beside = _rows(run, "token_lds_difference").loc["learnable vs forward_kl"]
    gap = drawn[:, 0] - drawn[:, 1]
    expected = [gap[0], *np.percentile(gap[1:], [2.5, 97.5])]
    assert beside[["estimate", "ci_low", "ci_high"]].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_planted_predictor_wins_and_is_named(run: Path) -> None:
    estimates = ESTIMATES.build_rows(pool_draws(lds_rows(run, "masks", DRAWS))).to_pandas()
    assert not estimates.duplicated(list(ESTIMATES.key)).any()
    table = lds_table(estimates, "masks")
    assert set(table["predictor"][:3]) == {"raw KL", "first_order", "disagreement (K=16)"}
    said = lds_sentences(estimates, "masks", 120)
    assert "Fewer than 100" not in said[0]
    assert "learnable" in said[0]
    assert any("learnable -" in s and "(lower)" in s for s in said)


def test_masks_that_gain_at_random_are_predicted_by_nothing(tmp_path: Path) -> None:
    run = _planted(tmp_path, noise=50.0)
    rows = _rows(run)
    assert ((rows["ci_low"] < 0) & (rows["ci_high"] > 0)).mean() > 0.8


@pytest.mark.parametrize(("masks", "marked"), [(100, False), (99, True)])
def test_few_masks_are_marked(tmp_path: Path, masks: int, marked: bool) -> None:
    run = _planted(tmp_path, masks=masks, noise=0.02)
    rows = lds_rows(run, "masks", DRAWS)
    assert ("fewer than 100" in rows[0]["method"]) == marked
    said = lds_sentences(ESTIMATES.build_rows(pool_draws(rows)).to_pandas(), "masks", masks)
    assert ("Fewer than 100 masks: take these as rough." in said[0]) == marked


def test_a_handful_of_masks_has_no_interval(tmp_path: Path) -> None:
    rows = _rows(_planted(tmp_path, masks=7, noise=0.02))
    assert rows["ci_low"].isna().all()
    assert "no interval from fewer than 8" in rows["method"].iloc[0]


def test_every_selector_but_random_and_oracle_is_tried(run: Path) -> None:
    terms = set(_rows(run).index)
    assert {"learnable", "logit_alignment", "predicted", "first_order", "prefix", "tip", "dial"} <= terms
    assert not terms & {"random", "oracle"}


def test_a_mask_that_keeps_a_stranger_is_refused(tmp_path: Path) -> None:
    run = _planted(tmp_path, masks=20)
    shard = shard_path(run / "interventions" / "masks", 0)
    table = INTERVENTIONS.read(shard)
    table["kept_positions"] = [
        np.r_[9999, row[1:]] if mask == 3 else row for mask, row in enumerate(table["kept_positions"])
    ]
    write_parquet(INTERVENTIONS.build_rows(table.to_dict("records")), shard)
    with pytest.raises(ArtefactError, match="mask 3 of masks keeps a position that has no prediction"):
        lds_rows(run, "masks", DRAWS)


def test_masks_without_spread_are_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    positions = plant_bank(run, WORLD)
    plant_lds(run, positions, np.full(75, 0.01))
    sentences = run_analysis(run, AnalyzeSettings(draws=100), Reporter(quiet=True))["verdict"]
    assert sentences == ["No token-LDS can be estimated: the masks' gains do not vary."]

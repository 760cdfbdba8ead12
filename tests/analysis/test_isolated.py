"""Isolated probes: weighted ranks against rows repeated, other numbers against NumPy and statsmodels."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from matplotlib.figure import Figure
from planted import World, isolated_frame, plant, plant_isolated
from scipy.stats import spearmanr

from teachdiag.analysis.bank.measurements import load_bank
from teachdiag.analysis.kinds.isolated import first_order_table, isolated_rows, isolated_sentences, isolated_table
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.placebo_draws import pool_draws
from teachdiag.analysis.step.rank_correlations import load_tokens, predictor_scores, weighted_spearman
from teachdiag.artefacts import ESTIMATES, POSITIONS
from teachdiag.errors import ArtefactError
from teachdiag.figures.plots.isolated import draw_correlations, isolated_figure
from teachdiag.figures.style import save, theme
from teachdiag.selectors.catalogue import SELECTORS

RNG = np.random.default_rng(11)
DRAWS = 100
Fault = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("isolated") / "run", World())


@pytest.fixture(scope="module")
def sample(run: Path) -> pd.DataFrame:
    """Every third position of the bank, with whole weights."""
    drawn = isolated_frame(_positions(run), np.random.default_rng(1)).iloc[::3].reset_index(drop=True)
    return drawn.assign(weight=np.random.default_rng(2).integers(1, 6, len(drawn)).astype(float))


@pytest.fixture(scope="module")
def estimates(run: Path, sample: pd.DataFrame) -> pd.DataFrame:
    plant_isolated(run, sample, "alone", noise_floor=1e-4)
    return _estimated(run, "alone")


def _positions(run: Path, split: str = "bank") -> pd.DataFrame:
    positions = POSITIONS.read(run / "positions")
    return positions[positions["split"] == split].reset_index(drop=True)


def _estimated(run: Path, probe_id: str) -> pd.DataFrame:
    bank = load_bank(run)
    rows = isolated_rows(run, probe_id, bank, Resampling(0, DRAWS, bank.n_prompts))
    return ESTIMATES.build_rows(pool_draws(rows)).to_pandas()


def _number(estimates: pd.DataFrame, analysis: str, outcome: str, term: str) -> pd.Series:
    rows = estimates[(estimates["analysis"] == analysis) & (estimates["outcome"] == outcome)]
    (row,) = (row for _, row in rows[rows["term"] == term].iterrows())
    return row


def _repeated(sample: pd.DataFrame) -> pd.DataFrame:
    return sample.loc[sample.index.repeat(sample["weight"].astype(int))]


def _tied(n: int, columns: int) -> np.ndarray:
    return np.round(RNG.normal(size=(n, columns)), 1)


def test_unit_weights_give_scipys_spearman() -> None:
    y, x = _tied(80, 2), _tied(80, 3)
    found = weighted_spearman(y, x, np.ones(80), np.zeros(80, np.int64), np.ones((1, 1)))[0]
    for i in range(2):
        for j in range(3):
            assert found[i, j] == pytest.approx(spearmanr(y[:, i], x[:, j]).statistic, abs=1e-12)


def test_whole_weights_and_draws_are_rows_repeated() -> None:
    prompts = np.repeat(np.arange(6), 10)
    y, x, weights = _tied(60, 2), _tied(60, 3), RNG.integers(1, 5, 60).astype(float)
    counts = np.vstack([np.ones(6), RNG.multinomial(6, np.full(6, 1 / 6), size=4)])
    found = weighted_spearman(y, x, weights, prompts, counts)
    for draw, count in enumerate(counts):
        rows = np.repeat(np.arange(60), (weights * count[prompts]).astype(int))
        for i in range(2):
            expected = [spearmanr(y[rows, i], x[rows, j]).statistic for j in range(3)]
            np.testing.assert_allclose(found[draw, i], expected, atol=1e-12)


def test_scale_of_the_weights_and_order_of_the_rows_change_nothing() -> None:
    y, x, weights = _tied(50, 1), _tied(50, 2), RNG.uniform(0.5, 3, 50)
    prompts, counts = np.zeros(50, np.int64), np.ones((1, 1))
    expected = weighted_spearman(y, x, weights, prompts, counts)
    order = RNG.permutation(50)
    for found in (
        weighted_spearman(y, x, 1e6 * weights, prompts, counts),
        weighted_spearman(y[order], x[order], weights[order], prompts, counts),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_without_spread_there_is_no_correlation() -> None:
    x = np.column_stack([np.full(10, 0.1), np.r_[np.zeros(5), np.arange(5)]])
    counts = np.array([[1.0, 1.0], [2.0, 0.0]])  # the second draw has only the half in which x is 0
    found = weighted_spearman(np.arange(10.0)[:, None], x, np.ones(10), np.repeat([0, 1], 5), counts)
    assert np.isnan(found[:, 0]).tolist() == [[True, False], [True, True]]


def test_stratified_samples_give_the_banks_correlation_on_average() -> None:
    """Of a bank in which x and y agree only where x is large, and that stratum is drawn four times as often."""
    x = RNG.normal(size=1200)
    y = np.where(x > 1, x, 0) + RNG.normal(size=1200)
    truth = spearmanr(x, y).statistic
    rate = np.where(x > 1, 0.6, 0.15)
    weighted, plain = [], []
    for _ in range(300):
        rows = np.flatnonzero(RNG.uniform(size=1200) < rate)
        alike = (np.zeros(len(rows), np.int64), np.ones((1, 1)))
        weighted.append(weighted_spearman(y[rows, None], x[rows, None], 1 / rate[rows], *alike).item())
        plain.append(weighted_spearman(y[rows, None], x[rows, None], np.ones(len(rows)), *alike).item())
    error = np.std(weighted) / np.sqrt(300)
    assert np.mean(weighted) == pytest.approx(truth, abs=4 * error)
    assert np.mean(plain) > truth + 20 * error


def test_every_predictor_is_correlated_with_every_outcome(
    run: Path, sample: pd.DataFrame, estimates: pd.DataFrame
) -> None:
    whole = _positions(run)
    inside = sample[["context_id", "position"]].merge(whole.reset_index(), on=["context_id", "position"])["index"]
    repeated = _repeated(sample)
    scores = predictor_scores(load_tokens(run, "bank"))
    assert {name for name, _ in scores} == (set(SELECTORS) - {"random", "oracle", "predicted"}) | {"teacher_entropy"}
    constant = {name for name, _ in scores if np.ptp(scores[name, _]) == 0}  # the planted top-K lists are all alike
    for outcome in ("gain", "fix_gain", "own_inner", "fix_inner"):
        mine = estimates[(estimates["analysis"] == "isolated_spearman") & (estimates["outcome"] == outcome)]
        own = set() if outcome == "fix_inner" else {"predicted"}
        assert set(mine["term"]) == {name for name, _ in scores} - constant | own
        for name, k in (("learnable", 16), ("forward_kl", None), ("teacher_entropy", None)):
            row = _number(estimates, "isolated_spearman", outcome, name)
            assert (row["k"] == 16) == (k == 16)
            score = pd.Series(scores[name, k][inside], sample.index)[repeated.index]
            assert row["estimate"] == pytest.approx(spearmanr(score, repeated[outcome]).statistic, abs=1e-5)
            assert row["ci_low"] < row["estimate"] < row["ci_high"]


def test_differences_from_raw_kl_are_paired(estimates: pd.DataFrame) -> None:
    gap = _number(estimates, "isolated_spearman_difference", "fix_gain", "learnable vs forward_kl")
    own, base = (_number(estimates, "isolated_spearman", "fix_gain", t) for t in ("learnable", "forward_kl"))
    assert gap["estimate"] == pytest.approx(own["estimate"] - base["estimate"])
    near = _number(estimates, "isolated_spearman_difference", "gain", "disagreement vs forward_kl")
    alone = _number(estimates, "isolated_spearman", "gain", "disagreement")
    assert near["ci_high"] - near["ci_low"] < 0.5 * (alone["ci_high"] - alone["ci_low"])
    assert "forward_kl vs forward_kl" not in set(estimates["term"])


def test_first_order_numbers_are_those_of_repeated_rows(sample: pd.DataFrame, estimates: pd.DataFrame) -> None:
    repeated = _repeated(sample)
    for outcome, inner in (("gain", "own_inner"), ("fix_gain", "fix_inner")):
        y, p = repeated[outcome].to_numpy(), (repeated["step_size"] * repeated[inner]).to_numpy()
        expected = {
            ("isolated_mean", "bank"): y.mean(),
            ("isolated_share", "lowers"): (y > 0).mean(),
            ("isolated_r2", "first_order"): 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
            ("isolated_remainder", "relative"): np.abs(y - p).mean() / np.abs(y).mean(),
        }
        for (analysis, term), value in expected.items():
            assert _number(estimates, analysis, outcome, term)["estimate"] == pytest.approx(value, rel=1e-4), analysis
    within = (repeated["gain"].abs() <= 1e-4).mean()
    assert _number(estimates, "isolated_share", "gain", "within noise")["estimate"] == pytest.approx(within)


def test_r2_agrees_with_weighted_least_squares_at_its_own_fit(run: Path, sample: pd.DataFrame) -> None:
    """Where the inner products are those of the least-squares line, R2 is the one that statsmodels prints."""
    x = sample["step_size"] * sample["own_inner"]
    fitted = sm.WLS(sample["gain"], sm.add_constant(x), weights=sample["weight"]).fit()
    plant_isolated(run, sample.assign(own_inner=fitted.fittedvalues / sample["step_size"]), "fitted")
    found = _number(_estimated(run, "fitted"), "isolated_r2", "gain", "first_order")
    assert found["estimate"] == pytest.approx(fitted.rsquared, rel=1e-4)


def test_gains_per_unit_of_step_appear_where_steps_differ(run: Path, sample: pd.DataFrame) -> None:
    eta = np.random.default_rng(3).uniform(0.5, 2, len(sample)) * 1e-3
    plant_isolated(run, sample.assign(step_size=eta), "matched")
    found = _estimated(run, "matched")
    repeated = _repeated(sample.assign(per_step=sample["gain"] / eta, kl=sample["forward_kl_before"]))
    expected = spearmanr(repeated["per_step"], repeated["kl"]).statistic
    row = _number(found, "isolated_spearman", "gain_per_step", "forward_kl")
    assert row["estimate"] == pytest.approx(expected, abs=1e-5)


def test_the_update_split_is_normalised_without_the_contexts_of_l_fix(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", World())
    update = _positions(run, "update")
    fixed = int(update["context_id"].max())
    rest = update[update["context_id"] != fixed].reset_index(drop=True)
    table = isolated_frame(rest, np.random.default_rng(4))
    plant_isolated(run, table, "alone", fix_contexts=[fixed])
    found = _estimated(run, "alone")
    kl, c = rest["disagreement_k16"].to_numpy(), rest["compatibility_k16"].to_numpy()
    d, c = (np.clip((z - np.quantile(z, 0.05)) / np.ptp(np.quantile(z, [0.05, 0.95])), 0, 1) for z in (kl, c))
    row = _number(found, "isolated_spearman", "gain", "learnable")
    assert row["estimate"] == pytest.approx(spearmanr(d * c, table["gain"]).statistic, abs=1e-5)
    assert "no interval from 2 prompts, where 8 are needed" in row["method"]
    assert found["ci_low"].isna().all()
    sentences = " ".join(isolated_sentences(found, "alone"))
    assert "less raw KL is" in sentences
    assert "nan" not in sentences


def test_a_step_of_nothing_is_said(run: Path, sample: pd.DataFrame) -> None:
    plant_isolated(run, sample.assign(fix_gain=0.0), "idle")
    found = _estimated(run, "idle")
    assert found[(found["outcome"] == "fix_gain") & found["analysis"].str.contains("spearman|r2")].empty
    assert "No rank correlation with the drop of L_fix can be estimated: it does not vary." in isolated_sentences(
        found, "idle"
    )
    with theme():
        texts = [
            text.get_text()
            for ax in isolated_figure(SimpleNamespace(estimates=found), "idle").axes
            for text in ax.texts
        ]
    assert any("not estimable" in text for text in texts)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda t: t.assign(context_id=t["context_id"] + 500), "which .*positions lacks"),
        (lambda t: t.assign(prompt_id="p999"), "prompts are not the bank's"),
        (lambda t: pd.concat([t, t[:1]]), "holds a position twice"),
        (lambda t: t[:0], "holds no position"),
    ],
    ids=["other context", "other prompt", "row twice", "empty"],
)
def test_tables_of_another_run_are_refused(run: Path, sample: pd.DataFrame, fault: Fault, message: str) -> None:
    plant_isolated(run, fault(sample), "strange")
    with pytest.raises(ArtefactError, match=message):
        _estimated(run, "strange")
    for file in (run / "isolated/strange/part-00000.parquet", run / "probes/strange.json"):
        file.unlink()


def test_sentences_and_tables_say_what_was_planted(estimates: pd.DataFrame) -> None:
    told = isolated_sentences(estimates, "alone")
    text = " ".join(told)
    assert "predicted ranks" not in text  # the derivative of L_fix is no predictor of it
    assert "`predicted`, the derivative of L_fix itself, has " in text
    assert "learnable ranks better than raw KL" in text
    assert "learnable ranks worse than raw KL" in text  # at its own context, where alignment was planted
    predictors = set(estimates.loc[estimates["analysis"] == "isolated_spearman", "term"])
    assert f"Of {len(predictors) - 1} predictors" in text
    table = isolated_table(estimates, "alone")
    assert table["predictor"].iloc[0] == "predicted"
    assert table["fix_inner"].iloc[0] == "-"
    assert set(table["predictor"]) >= {"raw KL", "learnable (K=16)"}
    shown = _number(estimates, "isolated_spearman", "gain", "forward_kl")["estimate"]
    assert f"{shown:.3g} [" in table.set_index("predictor").loc["raw KL", "own gain"]
    assert first_order_table(estimates, "alone").shape == (2, 5)
    assert isolated_sentences(estimates, "no such probe") == []


def test_the_figure_holds_the_tables_numbers(estimates: pd.DataFrame, tmp_path: Path) -> None:
    rows = estimates.query("analysis == 'isolated_spearman' and outcome == 'gain'")
    order = list(rows["term"])
    ax = draw_correlations(rows, order, Figure().subplots())
    bars, dots = ax.collections
    np.testing.assert_allclose(np.array(dots.get_offsets())[:, 0], rows["estimate"])
    ends = np.array([segment[:, 0] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, rows[["ci_low", "ci_high"]])
    with theme():
        figure = isolated_figure(SimpleNamespace(estimates=estimates), "alone")
        files = save(figure, tmp_path, "isolated")
        leading = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert leading[0] == "predicted"
    assert all(file.stat().st_size for file in files)

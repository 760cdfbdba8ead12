"""Which positions are scored: the first, or a draw whose weights stand for all tokens of a response.

The truth: a draw worked by hand, sums over whole responses, and the same run with every position scored.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from masked import with_masks
from stages import tables
from tiny_pair import PROBE

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import BUCKETS, CONTEXTS, GAINS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import own_lengths
from teachdiag.diagnostics.contexts.kept import Kept, Positions, draw
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import SettingsError
from teachdiag.figures.publish import publish
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings, CaptureSettings

KEY = ["context_id", "position"]


def test_a_draw_worked_by_hand() -> None:
    """Seven places have the strata 0, 1-2 and 3-6; three are one of each, five are one and two and two."""
    places, weights = draw(7, 3, np.random.default_rng(0), spread=True)
    assert weights.tolist() == [1, 2, 4]
    assert [places[0], 1 <= places[1] <= 2, 3 <= places[2] <= 6] == [0, True, True]
    places, weights = draw(7, 5, np.random.default_rng(0), spread=True)  # 1 + 2 + 2
    assert places[:3].tolist() == [0, 1, 2]
    assert weights.tolist() == [1, 1, 1, 2, 2]
    assert draw(7, 2, np.random.default_rng(0), spread=False)[1].tolist() == [3.5, 3.5]


@given(st.integers(1, 3000), st.data(), st.booleans(), st.integers(0, 99))
def test_weights_count_every_token(n: int, data: st.DataObject, spread: bool, seed: int) -> None:
    count = data.draw(st.integers(1, n))
    places, weights = draw(n, count, np.random.default_rng(seed), spread=spread)
    assert len(places) == len(weights) == count
    assert (np.diff(places) > 0).all()
    assert 0 <= places[0] <= places[-1] < n
    assert weights.sum() == pytest.approx(n)
    assert (weights >= 1).all()
    if spread:
        assert (np.diff(weights) >= -1e-9).all()  # the later, the more it stands for


@pytest.mark.parametrize("spread", [True, False])
def test_weighted_sums_are_unbiased_for_the_whole_response(spread: bool) -> None:
    values = np.random.default_rng(1).exponential(size=300) * np.geomspace(1, 9, 300)
    late = np.arange(300) >= 150
    estimates = []
    for seed in range(2000):
        places, weights = draw(300, 20, np.random.default_rng(seed), spread=spread)
        estimates.append([weights @ values[places], weights @ (values * late)[places], weights @ late[places]])
    truth = [values.sum(), values[late].sum(), late.sum()]
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - truth) < 4 * error).all()


def test_what_is_kept_of_a_response() -> None:
    response, mask = tuple(range(10, 20)), (1, 0, 1, 1, 0, 0, 1, 1, 0, 0)
    assert Positions(3, "first").keep(0, response) == Kept((10, 11, 12), None)
    assert Positions(3, "first").keep(0, response, mask) == Kept((10, 11, 12, 13), (0, 2, 3))
    assert Positions(3, "all").keep(0, response, mask) == Kept(tuple(range(10, 18)), (0, 2, 3, 6, 7))
    assert Positions(9, "spread").keep(0, response, mask) == Kept(tuple(range(10, 18)), (0, 2, 3, 6, 7), (1.0,) * 5)
    drawn = Positions(3, "spread").keep(0, response, mask)
    assert set(drawn.positions or ()) < {0, 2, 3, 6, 7}
    assert drawn.response == tuple(range(10, 18))  # 'pos_norm' does not hang on the draw
    assert sum(drawn.weights or ()) == pytest.approx(5)
    many = [Positions(3, "random", seed).keep(context, response).positions for seed in (0, 1) for context in (0, 1, 2)]
    assert len(set(many)) > 1
    assert many[0] == Positions(3, "random").keep(0, response).positions


def test_by_default_longer_responses_are_drawn_from_and_others_are_whole() -> None:
    settings = CaptureSettings(max_new_tokens=12, positions=10)
    assert Positions.of(settings) == Positions(10, "spread", settings.seed)
    assert Positions.of(replace(settings, positions=12)).keep(0, range(12)) == Kept(tuple(range(12)), None)
    brought = replace(settings, positions=12, contexts="rollouts.parquet")  # of any length
    assert len(Positions.of(brought).keep(0, range(400)).positions or ()) == 12


def test_drawn_positions_are_scored_as_they_are_where_all_are(
    captured_once: Path, tiny_settings: CaptureSettings, tmp_path: Path, quiet: Reporter
) -> None:
    contexts = with_masks(captured_once / "contexts", tmp_path / "masked.parquet")
    settings = CaptureSettings(**tiny_settings.as_dict() | {"contexts": str(contexts), "positions": 64})
    run_capture(tmp_path / "all", replace(settings, positions_from="all"), quiet)
    for name in ("spread", "again"):
        run_capture(tmp_path / name, replace(settings, positions=4, positions_from="spread"), quiet)
    assert tables(tmp_path / "spread") == tables(tmp_path / "again")
    drawn, all_ = (POSITIONS.read(tmp_path / name / "positions").set_index(KEY) for name in ("spread", "all"))
    assert "weight" not in all_.columns
    tokens = all_.groupby("context_id").size()
    assert (drawn.groupby("context_id").size() == tokens.clip(upper=4)).all()
    np.testing.assert_allclose(drawn.groupby("context_id")["weight"].sum(), tokens)
    assert not drawn.index.equals(all_.groupby("context_id").head(4).index)
    theirs = all_.loc[drawn.index]
    np.testing.assert_allclose(drawn["forward_kl"], theirs["forward_kl"], rtol=2e-3, atol=2e-5)
    np.testing.assert_array_equal(drawn[["token_id", "pos_norm"]], theirs[["token_id", "pos_norm"]])
    masks = CONTEXTS.read(tmp_path / "spread/contexts", ["context_id", "response_mask"]).set_index("context_id")
    assert all(masks.loc[c, "response_mask"] is None or masks.loc[c, "response_mask"][t] == 1 for c, t in drawn.index)


def test_a_number_of_positions_is_refused_where_all_are_scored() -> None:
    with pytest.raises(SettingsError, match="--positions belongs to --positions-from first, spread or random"):
        CaptureSettings(positions=10, positions_from="all")


def test_responses_that_are_longer_are_counted(
    captured_once: Path, tiny_settings: CaptureSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = with_masks(captured_once / "contexts", tmp_path / "masked.parquet")
    run_capture(tmp_path / "run", replace(tiny_settings, contexts=str(contexts), positions=4), Reporter())
    rows = CONTEXTS.read_arrow(contexts).to_pylist()
    lengths = [sum(row["response_mask"] or [1] * len(row["response_token_ids"])) for row in rows]
    assert own_lengths(tmp_path / "run").tolist() == lengths
    said = " ".join(capsys.readouterr().err.split())
    assert f"{sum(n > 4 for n in lengths)} responses have more than --positions 4 tokens of the student's" in said


@pytest.mark.slow
def test_the_profile_of_a_drawn_run_is_that_of_whole_responses(
    tiny_settings: CaptureSettings, tmp_path: Path, quiet: Reporter, png_alone: None
) -> None:
    """Mean gain and share of tokens by position, from the tables of the run; and the figure is drawn of them."""
    run = tmp_path / "run"
    run_capture(run, replace(tiny_settings, positions=6, positions_from="spread"), quiet)
    run_probe(run, PROBE, quiet)
    run_analysis(run, AnalyzeSettings(draws=100), quiet)
    gains = GAINS.read(run / "gains/p", [*KEY, "gain"]).merge(POSITIONS.read(run / "positions"), on=KEY)
    assert gains["weight"].max() > 1
    rows = BUCKETS.read(BUCKETS.file(run)).query("probe_id == 'p' and score == 'position' and outcome == 'gain'")
    assert rows[rows["statistic"] == "share of tokens"]["estimate"].sum() == pytest.approx(1)
    for row in rows.itertuples():
        inside = gains[gains["position"].between(row.score_low, row.score_high)]
        expected = {
            "mean": np.average(inside["gain"], weights=inside["weight"]),
            "share of tokens": inside["weight"].sum() / gains["weight"].sum(),
            "share of total": inside["gain"] @ inside["weight"] / (gains["gain"] @ gains["weight"]),
        }
        assert row.estimate == pytest.approx(expected[row.statistic], rel=1e-5)
    publish(run, quiet, "position_profile")
    assert (run / "figures/position_profile.png").exists()

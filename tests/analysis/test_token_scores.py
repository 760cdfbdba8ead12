"""What is shown of single tokens, against numpy and pandas over the whole bank."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import World, claims_alone, plant

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import RANKED, SCALES, SURFACES, TOKENS
from teachdiag.progress import Reporter
from teachdiag.selectors import SELECTORS, Tokens, select
from teachdiag.settings import AnalyzeSettings

WORLD = World(prompts=12, positions=40, slope_learnable=0.06, mean_gain=0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plant(tmp_path_factory.mktemp("tokens") / "run", WORLD)
    with pytest.MonkeyPatch.context() as patch:
        claims_alone(patch, "_plane", "_gain_surfaces")
        run_analysis(run, AnalyzeSettings(draws=100, fold_repeats=1), Reporter(quiet=True))
    return run


@pytest.fixture(scope="module")
def bank(run: Path) -> pd.DataFrame:
    positions = pd.read_parquet(run / "positions")
    return positions[positions["split"] == "bank"].sort_values(["context_id", "position"], ignore_index=True)


def _clipped(values: pd.Series) -> pd.Series:
    low, high = values.astype(float).quantile([0.05, 0.95])
    return ((values - low) / (high - low)).clip(0, 1)


@pytest.mark.slow
def test_scores_regions_and_ranks_are_those_of_the_bank(run: Path, bank: pd.DataFrame) -> None:
    tokens = TOKENS.read(run / "tokens")
    pd.testing.assert_frame_equal(tokens[["context_id", "position"]], bank[["context_id", "position"]])
    d, c = _clipped(bank["disagreement_k16"]), _clipped(bank["compatibility_k16"])
    for name, score in (("learnable", d * c), ("incompatible", d * (1 - c))):
        np.testing.assert_allclose(tokens[name], score, rtol=1e-6, atol=1e-7)
        assert (tokens[f"high_{name}"] == (tokens[name] >= tokens[name].quantile(0.9))).all()
    entropy, kl = bank["student_entropy"], bank["forward_kl"]
    assert (tokens["in_q3"] == ((entropy <= entropy.median()) & (kl >= kl.median()))).all()
    for name in RANKED:
        kept = select(Tokens.from_table(bank), SELECTORS[name], 0.1).kept
        assert ((tokens[f"rank_{name}"] <= np.ceil(0.1 * len(bank))) == kept).all()


def test_colours_reach_as_far_as_the_table_of_scales_says(run: Path, bank: pd.DataFrame) -> None:
    scales = SCALES.read(run / "analysis/scales.parquet").set_index("quantity")
    c = bank["compatibility_k16"].astype(float)
    assert scales.loc["compatibility", ["low", "high"]].tolist() == pytest.approx(c.quantile([0.02, 0.98]).tolist())
    assert scales.loc["forward_kl", "low"] == 0
    gain = pd.read_parquet(run / "gains/step")["gain"].astype(float).abs()
    assert scales.loc["gain", ["low", "high", "median_size"]].tolist() == pytest.approx(
        [-gain.quantile(0.98), gain.quantile(0.98), gain.median()]
    )
    surfaces = SURFACES.read(run / "analysis/surfaces.parquet")
    cells = surfaces[(surfaces["surface"] == "gain_by_learnable_incompatible") & (surfaces["k"] == 16)]
    cells = cells[(cells["probe_id"] == "step") & (cells["n_positions"] >= 5)]
    assert scales.loc["gain_by_learnable_incompatible", "high"] == pytest.approx(cells["value"].abs().quantile(0.95))

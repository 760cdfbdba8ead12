"""The released code's tables: by plain loops on a small bank, and against its own outputs where these are at hand."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from teachdiag.analysis.released.analyze_released import DEPARTURES
from teachdiag.analysis.released.released_bank import ReleasedBank, import_bank, load_released
from teachdiag.analysis.released.released_tables import TABLES
from teachdiag.artefacts.released import MEASURED
from teachdiag.cli import app
from teachdiag.errors import ArtefactError, RunError, SettingsError

PARITY = os.environ.get("TEACHDIAG_PARITY_BANK")
KEYS = {  # what identifies a row of a table, and which columns depend on the random stream
    "builder_robust_gain_stats": (),
    "builder_bucket_gain_curves": ("region", "score", "bucket"),
    "builder_standardized_regression_coefficients": ("y_col", "model", "term"),
    "builder_spline_sanity_bins": ("score", "bin"),
    "builder_within_q3_support_proxy_summary": ("proxy",),
    "per_run_q3_bootstrap_matching_summary": (),
    "per_run_regression_summary": ("model",),
    "matched_fixed_context_topn_summary": ("ratio", "selector"),
    "support_definition_robustness": ("support_definition",),
}


def synthetic(seed: int = 0, contexts: int = 20, positions: int = 24) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A bank before and after an update, in the release's columns."""
    rng = np.random.default_rng(seed)
    n = contexts * positions
    keys = {
        "sample_ordinal": np.repeat(np.arange(contexts), positions),
        "sample_index": np.repeat(rng.permutation(contexts), positions),
        "tok_pos": np.tile(np.arange(positions), contexts),
        "pos_norm": np.tile(np.arange(positions) / (positions - 1), contexts),
    }
    tables = []
    kl = rng.lognormal(-2, 1.5, n)
    for shrink in (1.0, 0.8):
        columns = {
            "Hs_full": rng.gamma(1, 1, n),
            "Ht_full": rng.gamma(1, 1, n),
            "KLf_full": kl * shrink * (1 if shrink == 1 else rng.uniform(0.7, 1.3, n)),
            "Cmass_true": np.minimum(1, rng.uniform(0.6, 1.2, n)),
            "CBC": rng.uniform(0.5, 1, n),
            "Coverlap": rng.integers(8, 17, n) / 16,
            "reach_t1": rng.integers(0, 2, n),
            "target_in_student_topk": rng.integers(0, 2, n),
            "student_top1_id": rng.integers(0, 9, n),
            "teacher_top1_id": rng.integers(0, 9, n),
        }
        tables.append(pd.DataFrame(keys | columns))
    return tables[0], tables[1].sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ReleasedBank:
    folder = tmp_path_factory.mktemp("released")
    before, after = synthetic()
    before.to_parquet(folder / "before.parquet")
    after.to_csv(folder / "after.csv", index=False)
    import_bank(folder / "before.parquet", folder / "after.csv", folder / "run", 16)
    return load_released(folder / "run")


def plain_norm(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, 0.05), np.quantile(values, 0.95)
    return np.array([min(max((v - low) / (high - low), 0.0), 1.0) for v in values])


def test_the_import_keeps_every_number_whatever_the_order(bank: ReleasedBank) -> None:
    before, after = synthetic()
    after = after.sort_values(["sample_ordinal", "tok_pos"])
    for name, _, _ in MEASURED:
        np.testing.assert_array_equal(bank.before(name), before[name])
        np.testing.assert_allclose(bank.after(name), after[name], rtol=1e-15)
    assert bank.k == 16


def test_table_1_is_that_of_a_loop(bank: ReleasedBank) -> None:
    before, after = synthetic()
    after = after.sort_values(["sample_ordinal", "tok_pos"]).reset_index(drop=True)
    g = (before["KLf_full"] - after["KLf_full"]) / (before["KLf_full"] + 1e-12)
    h, d, c = plain_norm(after["Hs_full"]), plain_norm(before["KLf_full"]), plain_norm(after["Cmass_true"])
    q3 = [i for i in range(len(g)) if h[i] <= np.median(h) and d[i] >= np.median(d)]
    low, high = np.quantile(c[q3], 1 / 3), np.quantile(c[q3], 2 / 3)
    gap = np.mean([g[i] for i in q3 if c[i] >= high]) - np.mean([g[i] for i in q3 if c[i] <= low])
    apart, position = [], before["tok_pos"]
    for sample in sorted(set(before["sample_index"])):
        own = [i for i in q3 if before["sample_index"][i] == sample]
        middle = np.median([c[i] for i in own]) if own else 0
        lows = [i for i in own if c[i] <= middle]
        for i in own:
            if c[i] > middle and lows:
                away = [(h[i] - h[j]) ** 2 + (d[i] - d[j]) ** 2 + ((position[i] - position[j]) / 23) ** 2 for j in lows]
                apart.append(g[i] - g[lows[int(np.argmin(away))]])
    (row,) = TABLES["per_run_q3_bootstrap_matching_summary"](bank)
    assert row["bootstrap_mean_diff"] == pytest.approx(gap, rel=1e-12)
    assert row["matching_pairs"] == len(apart)
    assert row["matching_mean_diff"] == pytest.approx(np.mean(apart), rel=1e-12)
    assert row["matching_median_diff"] == pytest.approx(np.median(apart), rel=1e-12)
    assert row["bootstrap_ci_low"] < gap < row["bootstrap_ci_high"]


def test_top_n_takes_the_best_and_no_more(bank: ReleasedBank) -> None:
    rows = {(row["ratio"], row["selector"]): row for row in TABLES["matched_fixed_context_topn_summary"](bank)}
    before, _ = synthetic()
    d, c = plain_norm(before["KLf_full"]), plain_norm(bank.after("Cmass_true"))
    for ratio in (0.01, 0.03, 0.05, 0.10):
        row = rows[ratio, "dlearn_high"]
        assert row["n_keep"] == max(1, round(480 * ratio))
        assert row["selected_mean_Dlearn"] == pytest.approx(np.sort(d * c)[-row["n_keep"] :].mean())
    assert rows[0.1, "random"]["mean_G"] != rows[0.05, "random"]["mean_G"]


def test_degenerate_proxies_give_what_the_release_gives(bank: ReleasedBank) -> None:
    rows = {row["proxy"]: row for row in TABLES["builder_within_q3_support_proxy_summary"](bank)}
    constant = rows["shared_student_topk_mass"]
    assert (constant["mean_diff"], constant["matching_pairs"]) == (0, 0)
    assert np.isnan(constant["matching_mean_diff"])
    assert rows["topk_jaccard"]["mean_diff"] == rows["Coverlap"]["mean_diff"]
    assert rows["shared_teacher_topk_mass"]["mean_diff"] == rows["Cmass_true"]["mean_diff"]


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    before, after = synthetic(contexts=3)
    holed = before.assign(CBC=before["CBC"].where(before.index != 2))
    short = after[after["tok_pos"].ne(5) | after["sample_ordinal"].ne(1)]
    cases = {
        "lacks the columns CBC": (before.drop(columns="CBC"), after),
        "holds position 0 of sample 0 twice": (pd.concat([before, before.iloc[:1]]), after),
        "non-finite number at position 2 of sample 0": (
            holed,
            after,
        ),
        r"holds 72 positions, of which 71 are in both": (
            before,
            short,
        ),
    }
    for message, (one, two) in cases.items():
        one.to_parquet(tmp_path / "one.parquet")
        two.to_parquet(tmp_path / "two.parquet")
        with pytest.raises(ArtefactError, match=message):
            import_bank(tmp_path / "one.parquet", tmp_path / "two.parquet", tmp_path / "run", 16)
    (tmp_path / "one.parquet").write_text("nothing")
    with pytest.raises(ArtefactError, match="cannot be read as Parquet or CSV"):
        import_bank(tmp_path / "one.parquet", tmp_path / "two.parquet", tmp_path / "run", 16)
    with pytest.raises(ArtefactError, match=r"gone\.csv does not exist"):
        import_bank(tmp_path / "gone.csv", tmp_path / "two.parquet", tmp_path / "run", 16)
    before.to_parquet(tmp_path / "one.parquet")
    after.to_csv(tmp_path / "two.csv")
    with pytest.raises(
        ArtefactError, match=r"one\.parquet was not scored with K=10: at position .* no multiple of 1/10"
    ):
        import_bank(tmp_path / "one.parquet", tmp_path / "two.csv", tmp_path / "run", 10)
    with pytest.raises(SettingsError, match="--k is 0"):
        import_bank(tmp_path / "one.parquet", tmp_path / "two.csv", tmp_path / "run", 0)
    with pytest.raises(RunError, match="holds no bank of the released code: bring one with `teachdiag import released"):
        load_released(tmp_path / "none")
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_a_bank_is_never_overwritten(tmp_path: Path) -> None:
    before, after = (tmp_path / f"{side}.parquet" for side in ("before", "after"))
    for file, table in zip((before, after), synthetic(contexts=3), strict=True):
        table.to_parquet(file)
    run = tmp_path / "run"
    found = import_bank(before, after, run, 16)
    kept = {file: file.read_bytes() for file in run.rglob("*.parquet")}
    assert import_bank(before, after, run, 16) == found  # the very same, again
    synthetic(seed=1, contexts=3)[1].to_parquet(after)
    with pytest.raises(RunError, match="was made with another configuration"):
        import_bank(before, after, run, 16)
    with pytest.raises(RunError, match=r"k was 16, now 32"):
        import_bank(before, after, run, 32)
    assert {file: file.read_bytes() for file in run.rglob("*.parquet")} == kept
    (tmp_path / "own").mkdir()
    (tmp_path / "own/capture.json").write_text("{}")
    with pytest.raises(RunError, match="is a run of teachdiag itself"):
        import_bank(before, after, tmp_path / "own", 16)


def test_the_command_line_writes_every_table_and_names_its_departures(tmp_path: Path) -> None:
    before, after = synthetic()
    before.to_parquet(tmp_path / "b.parquet")
    after.to_parquet(tmp_path / "a.parquet")
    options = ["--before", str(tmp_path / "b.parquet"), "--after", str(tmp_path / "a.parquet")]
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["import", "released", *options, "--run", str(run)])
    assert "480 positions of 20 contexts, K=16" in done.output
    assert CliRunner().invoke(app, ["analyze", str(run), "--compat", "released", "--quiet"]).exit_code == 0
    for command in ("analyze", "figures", "report"):
        advised = CliRunner().invoke(app, [command, str(run)]).exception
        assert f"`teachdiag analyze {run} --compat released`" in str(advised)
    page = (run / "analysis/released/released.md").read_text()
    for name, lines in DEPARTURES.items():
        assert f"## {name}" in page
        assert all(f"- {line}" in page for line in lines)
        assert len(pd.read_csv(run / "analysis/released" / f"{name}.csv")) > 0
    assert set(DEPARTURES) == set(TABLES) == set(KEYS)


@pytest.mark.skipif(PARITY is None, reason="TEACHDIAG_PARITY_BANK names no folder with a bank and the released outputs")
@pytest.mark.parametrize("name", list(TABLES))
def test_every_number_of_the_released_outputs(name: str, tmp_path: Path) -> None:
    """Point estimates to 1e-9, bounds within a tenth of the interval; `random` and rows that need lists left out."""
    folder = Path(str(PARITY))
    import_bank(folder / "k16_before.parquet", folder / "k16_after.parquet", tmp_path, 16)
    mine = pd.DataFrame(TABLES[name](load_released(tmp_path)))
    theirs = pd.read_csv(folder / "released_outputs_k16" / f"{name}.csv")
    key = list(KEYS[name])
    if name == "matched_fixed_context_topn_summary":
        mine, theirs = (table[table["selector"] != "random"] for table in (mine, theirs))
    both = mine.merge(theirs, **({"on": key} if key else {"how": "cross"}), suffixes=("", "_theirs"))
    assert len(both) == len(mine)
    assert len(mine) >= len(theirs) - 3 * (name == "support_definition_robustness")
    bounds = [c for c in mine if c.endswith(("ci_low", "ci_high"))]
    for column in mine.select_dtypes("number").columns.difference([*key, *bounds]):
        if f"{column}_theirs" in both:
            a, b = both[column].to_numpy(float), both[f"{column}_theirs"].to_numpy(float)
            scale = (
                1e-14 if column in ("std_coef", "selected_mean_Dincompat") else 0
            )  # an intercept of 0, a mean of 1e-17
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=max(scale, 1e-15), err_msg=column)
    for low in (c for c in bounds if c.endswith("ci_low")):
        high = low.removesuffix("low") + "high"
        width = both[f"{high}_theirs"] - both[f"{low}_theirs"]
        for bound in (low, high):
            assert ((both[bound] - both[f"{bound}_theirs"]).abs() <= 0.1 * width + 1e-15).all(), bound

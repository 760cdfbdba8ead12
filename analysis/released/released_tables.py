"""The nine tables that the released scripts print, from one bank; names, columns and order are theirs.

Each function gives the point estimates of one table to the last digits; bootstrap bounds depend on the random stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from teachdiag.analysis.released.released_bank import ReleasedBank, norm_or_zero, quadrant, winsorised
from teachdiag.analysis.released.released_contrasts import gap, match_nearest, mean_interval
from teachdiag.scores import Array, Codes, Mask
from teachdiag.seeds import derive_seed

_Q3 = "Q3_lowH_highD"
_SEEDS = {"proxies": 41717, "per run": 42, "robustness": 17, "top_n": 20260515}
_THIRDS, _QUARTERS = (1 / 3, 2 / 3), (0.25, 0.75)
_RATIOS, _TOP_DRAWS = (0.01, 0.03, 0.05, 0.10), 10_000  # the release has 500, whose bounds are coarse
Rows = list[dict[str, Any]]


def robust_gains(bank: ReleasedBank) -> Rows:
    """`builder_robust_gain_stats`: relative gain, plain and robust."""
    g = bank.gain
    low, high = np.quantile(g, [0.05, 0.95])
    return [
        {
            "tokens": len(g),
            "contexts": bank.rows["sample_ordinal"].nunique(),
            "raw_mean": g.mean(),
            "median": np.median(g),
            "trimmed_mean_5_95": _trimmed(g),
            "winsor_mean_1_99": winsorised(g, 0.01).mean(),
            "winsor_mean_5_95": winsorised(g, 0.05).mean(),
            "q05": low,
            "q95": high,
        }
    ]


def bucket_curves(bank: ReleasedBank) -> Rows:
    """`builder_bucket_gain_curves`: relative gain by quarter of each score, everywhere and inside Q3."""
    scores, g = _builder_scores(bank), bank.gain
    q3 = quadrant(scores["Hn"], scores["Dn"])
    rows: Rows = []
    for region, mask in (("all", np.ones(len(g), bool)), (_Q3, q3)):
        for name in ("Cn", "Dlearn", "Dincompat", "Dn", "TIP", "H_plus_teach"):
            score, gain = scores[name][mask], g[mask]
            for bucket, members in _cut(score, 4):
                values = gain[members]
                contexts = bank.rows["sample_ordinal"].to_numpy()[mask][members]
                rows.append(
                    {"region": region, "score": name, "bucket": bucket, "tokens": len(values)}
                    | {"contexts": len(np.unique(contexts)), "score_mean": score[members].mean()}
                    | {"G_mean": values.mean(), "G_median": np.median(values), "G_trimmed_mean_5_95": _trimmed(values)}
                    | {"G_winsor_mean_1_99": winsorised(values, 0.01).mean()}
                )
    return rows


def standardised_regressions(bank: ReleasedBank) -> Rows:
    """`builder_standardized_regression_coefficients`: three models of relative gain, raw and winsorised."""
    s = _builder_scores(bank)
    interaction = s["Hn"] * s["Dn"]
    controls = {"pos_norm": bank.position, "Htn": s["Htn"]}
    models = {
        "H_D_interaction": {"Hn": s["Hn"], "Dn": s["Dn"], "Hn_x_Dn": interaction} | controls,
        "H_D_C": {"Hn": s["Hn"], "Dn": s["Dn"], "Hn_x_Dn": interaction, "Cn": s["Cn"]} | controls,
        "teach_decomp": {"Hn": s["Hn"], "Dlearn": s["Dlearn"], "Dincompat": s["Dincompat"]} | controls,
    }
    outcomes = {"G_KLf": bank.gain} | {f"G_KLf_winsor0{t}": winsorised(bank.gain, t / 100) for t in (1, 5)}
    rows: Rows = []
    for y_name, y in outcomes.items():
        for model, columns in models.items():
            coefficients, r2 = _ols(_z(y), [_z(column) for column in columns.values()])
            rows += [
                {"y_col": y_name, "model": model, "term": term, "std_coef": value, "r2": r2, "tokens": len(y)}
                for term, value in zip(("intercept", *columns), coefficients, strict=True)
            ]
    return rows


def residual_bins(bank: ReleasedBank) -> Rows:
    """`builder_spline_sanity_bins`: residual of winsorised relative gain on H, D, position, by tenth of each score."""
    s, y = _builder_scores(bank), winsorised(bank.gain, 0.01)
    columns = [s["Hn"], s["Dn"], bank.position, s["Htn"]]
    coefficients, r2 = _ols(y, columns)
    residual = y - np.column_stack([np.ones(len(y)), *columns]) @ coefficients
    return [
        {"score": name, "bin": number, "tokens": int(members.sum()), "score_mean": s[name][members].mean()}
        | {"residual_mean": residual[members].mean(), "residual_median": np.median(residual[members]), "base_r2": r2}
        for name in ("Cn", "Dlearn", "Dincompat", "TIP", "H_plus_teach")
        for number, members in _cut(s[name], 10)
    ]


def proxies(bank: ReleasedBank) -> Rows:
    """`builder_within_q3_support_proxy_summary`: gaps and matched pairs of ten support proxies inside Q3."""
    s, g = _builder_scores(bank), bank.gain
    q3 = quadrant(s["Hn"], s["Dn"])
    clusters = bank.clusters("sample_ordinal")[q3]
    features = np.column_stack([s["Hn"], s["Dn"], bank.position])[q3]
    rows: Rows = []
    for name, column in _proxy_columns(bank).items():
        raw = column[q3]
        score = norm_or_zero(raw)
        contrast = gap(g[q3], score, _THIRDS, clusters, _SEEDS["proxies"])
        pairs = match_nearest(g[q3], score, features, clusters)
        rows.append(
            {"region": _Q3, "proxy": name, "tokens": int(q3.sum()), "contexts": len(np.unique(clusters))}
            | {"proxy_mean": raw.mean(), "proxy_std": raw.std()}
            | {"mean_diff": contrast.estimate, "ci_low": contrast.low, "ci_high": contrast.high}
            | {"matching_pairs": pairs.pairs, "matching_mean_diff": pairs.mean, "matching_median_diff": pairs.median}
        )
    return rows


def per_run_gap(bank: ReleasedBank) -> Rows:
    """`per_run_q3_bootstrap_matching_summary`: the paper's Table 1, with H and C from after the update."""
    h, d, c = (norm_or_zero(x) for x in (bank.after("Hs_full"), bank.before("KLf_full"), bank.after("Cmass_true")))
    q3, g = quadrant(h, d), bank.gain
    clusters = bank.clusters("sample_index")[q3]
    position = bank.rows["tok_pos"].to_numpy(np.float64)
    position = (position - position.min()) / max(np.ptp(position), 1.0)
    contrast = gap(g[q3], c[q3], _THIRDS, clusters, _SEEDS["per run"])
    pairs = match_nearest(g[q3], c[q3], np.column_stack([h, d, position])[q3], clusters)
    return [
        {"bootstrap_mean_diff": contrast.estimate, "bootstrap_ci_low": contrast.low, "bootstrap_ci_high": contrast.high}
        | {"matching_pairs": pairs.pairs, "matching_mean_diff": pairs.mean, "matching_median_diff": pairs.median}
    ]


def per_run_regressions(bank: ReleasedBank) -> Rows:
    """`per_run_regression_summary`: R2 of three models of raw relative gain, H and C from after the update."""
    h, d, c = (norm_or_zero(x) for x in (bank.after("Hs_full"), bank.before("KLf_full"), bank.after("Cmass_true")))
    controls = [bank.position, norm_or_zero(bank.after("Ht_full"))]
    models = {
        "H_D": ("1,H,D,H*D,pos,Ht", [h, d, h * d, *controls]),
        "H_D_C": ("HD + C", [h, d, h * d, *controls, c]),
        "H_Dlearn_Dincompat": ("1,H,D*C,D*(1-C),pos,Ht", [h, d * c, d * (1 - c), *controls]),
    }
    shares = {name: _ols(bank.gain, columns)[1] for name, (_, columns) in models.items()}
    return [
        {"model": name, "r2": shares[name], "delta_r2_vs_HD": shares[name] - shares["H_D"], "terms": terms}
        for name, (terms, _) in models.items()
    ]


def top_n(bank: ReleasedBank) -> Rows:
    """`matched_fixed_context_topn_summary`: the best-scored round(rho N) positions, C from after the update."""
    h, d, c = (norm_or_zero(x) for x in (bank.before("Hs_full"), bank.before("KLf_full"), bank.after("Cmass_true")))
    q3, g = quadrant(h, d), winsorised(bank.gain, 0.01)
    learn, incompatible = d * c, d * (1 - c)
    selectors = {
        "dlearn_high": ("Dlearn", learn),
        "divergence": ("Dn", d),
        "tip_softor": ("tip_softor", h + d - h * d),
        "ca_softor": ("ca_softor", h + learn - h * learn),
        "entropy": ("Hn", h),
        "highC": ("Cn", c),
        "dincompat_high": ("Dincompat", incompatible),
        "q3_highC": ("q3_highc", 2.0 * q3 + c),
        "q3_dlearn": ("q3_dlearn", 2.0 * q3 + learn),
        "q3_divergence": ("q3_divergence", 2.0 * q3 + d),
        "random": ("random", None),
    }
    facts = {"Hn": h, "Dn": d, "Cn": c, "Dlearn": learn, "Dincompat": incompatible}
    clusters = bank.clusters("sample_index")
    rows: Rows = []
    for ratio in _RATIOS:
        keep = max(1, round(len(g) * ratio))
        for name, (column, score) in selectors.items():
            seed = derive_seed(_SEEDS["top_n"], name, round(100 * ratio))
            taken = _best(score, keep) if score is not None else np.random.default_rng(seed).permutation(len(g))[:keep]
            low, high = mean_interval(g[taken], clusters[taken], seed, _TOP_DRAWS)
            mean = g[taken].mean()
            rows.append(
                {"K": bank.k, "ratio": ratio, "selector": name, "n_tokens_total": len(g), "n_keep": keep}
                | {"keep_ratio_exact": keep / len(g), "mean_G": mean, "ci_low": low, "ci_high": high}
                | {"gain_per_keep_ratio": mean / (keep / len(g)), "selected_q3_frac": q3[taken].mean()}
                | {f"selected_mean_{fact}": values[taken].mean() for fact, values in facts.items()}
                | {"score_col": column}
            )
    return rows


def support_robustness(bank: ReleasedBank) -> Rows:
    """`support_definition_robustness`: the decomposition with each proxy in C's place, on percentile ranks.

    The release's rows that need stored top-K lists (shared masses, first choices) are left out.
    """
    h, d, teacher = (_ranks(bank.before(name)) for name in ("Hs_full", "KLf_full", "Ht_full"))
    g, q3 = bank.gain, quadrant(h, d)
    base = _ols(_z(g), [_z(x) for x in (h, d, h * d, bank.position, teacher)])[1]
    overlap = bank.after("Coverlap")
    shown = {name: bank.after(name) for name in ("Cmass_true", "Coverlap", "CBC", "reach_t1", "target_in_student_topk")}
    shown |= {"topk_jaccard": overlap.clip(0, 1) / (2 - overlap.clip(0, 1)), "topk_overlap_frac": overlap}
    clusters = bank.clusters("sample_ordinal")[q3]
    rows: Rows = []
    for name, column in shown.items():
        c = _ranks(column)
        coefficients, r2 = _ols(_z(g), [_z(x) for x in (h, d * c, d * (1 - c), bank.position, teacher)])
        contrast = gap(g[q3], (d * c)[q3], _QUARTERS, clusters, _SEEDS["robustness"])
        rows.append(
            {"n_tokens": len(g), "n_prompts": bank.rows["sample_ordinal"].nunique(), "support_definition": name}
            | {"support_mean": column.mean(), "support_std": column.std(), "r2_HD": base, "r2_decomp": r2}
            | {"delta_r2_vs_HD": r2 - base, "beta_Dlearn": coefficients[2], "beta_Dincompat": coefficients[3]}
            | {"beta_gap": coefficients[2] - coefficients[3], "q3_high_minus_low_mean_gain": contrast.estimate}
            | {"q3_high_minus_low_ci_low": contrast.low, "q3_high_minus_low_ci_high": contrast.high}
            | {"q3_high_tokens": contrast.n_high, "q3_low_tokens": contrast.n_low}
        )
    return rows


TABLES: dict[str, Callable[[ReleasedBank], Rows]] = {
    "builder_robust_gain_stats": robust_gains,
    "builder_bucket_gain_curves": bucket_curves,
    "builder_standardized_regression_coefficients": standardised_regressions,
    "builder_spline_sanity_bins": residual_bins,
    "builder_within_q3_support_proxy_summary": proxies,
    "per_run_q3_bootstrap_matching_summary": per_run_gap,
    "per_run_regression_summary": per_run_regressions,
    "matched_fixed_context_topn_summary": top_n,
    "support_definition_robustness": support_robustness,
}


def _builder_scores(bank: ReleasedBank) -> dict[str, Array]:
    """Scores of the release's cross-dataset builder: all from theta0, D over the full vocabulary."""
    names = {"Hn": "Hs_full", "Dn": "KLf_full", "Cn": "Cmass_true", "Htn": "Ht_full"}
    s = {name: norm_or_zero(bank.before(column)) for name, column in names.items()}
    s |= {"Dlearn": s["Dn"] * s["Cn"], "Dincompat": s["Dn"] * (1 - s["Cn"])}
    s["TIP"] = s["Hn"] + s["Dn"] - s["Hn"] * s["Dn"]
    s["H_plus_teach"] = s["Hn"] + s["Dlearn"] - s["Hn"] * s["Dlearn"]
    return s


def _proxy_columns(bank: ReleasedBank) -> dict[str, Array]:
    overlap = bank.before("Coverlap").clip(0, 1)
    columns = {name: bank.before(name) for name in ("Cmass_true", "CBC", "Coverlap")}
    return columns | {
        "shared_teacher_topk_mass": bank.before("Cmass_true"),
        "shared_student_topk_mass": np.ones(len(overlap)),
        "topk_overlap_frac": bank.before("Coverlap"),
        "topk_jaccard": overlap / (2 - overlap + 1e-12),
        "reach_t1": bank.before("reach_t1"),
        "target_in_student_topk": bank.before("target_in_student_topk"),
        "top1_match": (bank.before("student_top1_id") == bank.before("teacher_top1_id")).astype(np.float64),
    }


def _best(score: Array, keep: int) -> Codes:
    """The first `keep` rows in pandas' unstable descending order, which decides ties as the release does."""
    order: Codes = pd.Series(score).sort_values(ascending=False).index[:keep].to_numpy()
    return order


def _cut(score: Array, n: int) -> list[tuple[int, Mask]]:
    """Cut by quantiles as pandas does, coinciding edges dropped: number and members of each bucket."""
    codes = pd.qcut(score, n, labels=False, duplicates="drop")
    return [(int(code), codes == code) for code in np.unique(codes)]


def _ols(y: Array, columns: Sequence[Array]) -> tuple[Array, float]:
    """Least squares with an intercept: coefficients, and R2."""
    design = np.column_stack([np.ones(len(y)), *columns])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0].astype(np.float64)
    return coefficients, float(1 - ((y - design @ coefficients) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _ranks(values: Array) -> Array:
    ranks: Array = rankdata(values).astype(np.float64)
    return ranks / len(values)


def _trimmed(values: Array) -> float:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(values[(values >= low) & (values <= high)].mean())


def _z(values: Array) -> Array:
    spread = values.std()
    return (values - values.mean()) / spread if spread >= 1e-12 else np.zeros(len(values))

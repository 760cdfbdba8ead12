"""Cluster-robust errors and p-values of the regressions, all from cross-products of each prompt.

CRV1 scales the sandwich of the prompts' scores as Stata and statsmodels do; CRV3 is the cluster jackknife (MacKinnon,
Nielsen and Webb 2023), safer with few prompts; two-way errors add token ids as a second dimension (Cameron, Gelbach and
Miller 2011); the wild cluster bootstrap imposes the null (Cameron, Gelbach and Miller 2008) with Webb's six weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from teachdiag.analysis.bank.measurements import Outcome
from teachdiag.analysis.resampling.bootstrap import Resampling, prompt_blocks, prompt_sums
from teachdiag.analysis.step.design import GAP, MODELS, Sample, with_intercept
from teachdiag.scores import Array, Codes
from teachdiag.seeds import derive_seed
from teachdiag.settings import HEADLINE_OUTCOME

FEW_PROMPTS = 40  # with fewer, p-values come from the wild bootstrap too
TESTED = ("learnable", "incompatible", GAP)
_WEBB = np.sqrt([0.5, 1.0, 1.5])
_WILD_DRAWS = 1999
Variables = Callable[[Codes], Array]  # z-scored variables at some positions


class Model(NamedTuple):
    """One regression from moments.

    `gram`: shape (prompts, k, k), cross-products of the design of each prompt, intercept first. `with_outcome`: shape
    (prompts, k). `bread`: inverse of the total gram. `coefficients`: shape (k,). `n`: positions.
    """

    gram: Array
    with_outcome: Array
    bread: Array
    coefficients: Array
    n: int

    @property
    def scores(self) -> Array:
        """X'e of every prompt that has positions, shape (prompts, k)."""
        return self.with_outcome - self.gram @ self.coefficients


def model_of(by_prompt: Array, columns: Sequence[int]) -> Model:
    """Fit the variable at the last place on those before it.

    Args:
        by_prompt: shape (prompts, 1 + q, 1 + q), cross-products of [1, variables]. Prompts without positions drop out.
        columns: of predictors and outcome among the variables.
    """
    by_prompt = by_prompt[by_prompt[:, 0, 0] > 0]
    design = [0, *(column + 1 for column in columns[:-1])]
    gram, with_outcome = by_prompt[:, design][:, :, design], by_prompt[:, design, columns[-1] + 1]
    bread = np.linalg.inv(gram.sum(axis=0))
    return Model(gram, with_outcome, bread, bread @ with_outcome.sum(axis=0), int(by_prompt[:, 0, 0].sum()))


def crv1(model: Model) -> Array:
    """Covariance of the coefficients, shape (k, k): G/(G-1) (N-1)/(N-k) bread (sum of scores' squares) bread."""
    return _sandwich(model, model.scores.T @ model.scores, len(model.scores))


def crv3(model: Model) -> Array:
    """Covariance of the coefficients by the cluster jackknife, shape (k, k): (G-1)/G sum (b_-g - b)(b_-g - b)'."""
    total, moment = model.gram.sum(axis=0), model.with_outcome.sum(axis=0)
    without = np.linalg.solve(total - model.gram, (moment - model.with_outcome)[..., None])[..., 0]
    apart = without - model.coefficients
    return (len(apart) - 1) / len(apart) * apart.T @ apart


def two_way(
    models: Sequence[Model], columns_of: Sequence[Sequence[int]], variables: Variables, prompts: Codes, tokens: Codes
) -> list[Array]:
    """Covariances clustered by prompt and by token id, shape (k, k): by each, less that by their intersection.

    Args:
        models: some regressions over the same n positions.
        columns_of: of each regression's predictors and outcome among the variables.
        variables: gives these at some positions, (r,) to (r, q).
        prompts: shape (n,).
        tokens: shape (n,), token id of each position.
    """
    by_token = [np.zeros((int(tokens.max()) + 1, len(model.coefficients))) for model in models]
    within, n_within = [np.zeros_like(model.bread) for model in models], 0
    for block in prompt_blocks(prompts):
        values, ids = with_intercept(variables(block.rows)), tokens[block.rows]
        numbers = np.searchsorted(block.cuts, np.arange(len(ids)), "right")
        pairs = np.unique(numbers * len(by_token[0]) + ids, return_inverse=True)[1].astype(np.int64)
        n_pairs = int(pairs.max()) + 1
        n_within += n_pairs
        for model, wanted, token_scores, squares in zip(models, columns_of, by_token, within, strict=True):
            design = values[:, [0, *(column + 1 for column in wanted[:-1])]]
            scores = design * (values[:, wanted[-1] + 1] - design @ model.coefficients)[:, None]
            token_scores += prompt_sums(scores, ids, len(token_scores))
            paired = prompt_sums(scores, pairs, n_pairs)
            squares += paired.T @ paired
    n_tokens = len(np.unique(tokens))
    return [
        crv1(model) + _sandwich(model, token_scores.T @ token_scores, n_tokens) - _sandwich(model, squares, n_within)
        for model, token_scores, squares in zip(models, by_token, within, strict=True)
    ]


def wild_p_value(model: Model, contrast: Array, seed: int, draws: int = _WILD_DRAWS) -> float:
    """Two-sided p-value of contrast'b = 0 from the wild cluster bootstrap-t, the null imposed.

    Args:
        model: the regression.
        contrast: shape (k,).
        seed: of the weights.
        draws: with G prompts there are no more than 6^G distinct ones.

    Returns:
        Share of draws whose |t| is no smaller than the real one, both counted in.
    """
    direction = model.bread @ contrast
    estimate, reach = contrast @ model.coefficients, contrast @ direction
    restricted = model.coefficients - direction * estimate / reach
    residual = model.with_outcome - model.gram @ restricted
    weights = np.random.default_rng(seed).choice(np.r_[-_WEBB, _WEBB], (draws, len(residual)))
    beyond = (weights @ residual) @ model.bread  # b* - restricted b, shape (draws, k)
    scores = weights[..., None] * residual - np.einsum("gij,dj->dgi", model.gram, beyond)
    spread = np.sqrt(((scores @ direction) ** 2).sum(axis=1))  # CRV1 but for its factor, which cancels
    real = abs(estimate) / np.sqrt(((model.scores @ direction) ** 2).sum())
    return float((1 + (np.abs(beyond @ contrast) / spread >= real - 1e-12).sum()) / (draws + 1))


def contrasts_of(terms: Sequence[str]) -> tuple[Array, list[str]]:
    """Return the matrix that turns coefficients into reported numbers: each of them, and beta_L - beta_I."""
    each = np.eye(len(terms))
    if not {"learnable", "incompatible"} <= set(terms):
        return each, list(terms)
    gap = each[terms.index("learnable")] - each[terms.index("incompatible")]
    return np.vstack([each, gap]), [*terms, GAP]


def inference_rows(sample: Sample, tokens: Codes, resampling: Resampling) -> list[dict[str, Any]]:
    """Return the rows of the inference table: gains of a sample, of placebos one draw, in units of z-scored variables.

    Args:
        sample: the regressions' sample.
        tokens: shape (n,), token id of each position.
        resampling: gives the seed of the wild bootstrap.
    """
    fitted = [
        (outcome, name, sample.columns(terms, index))
        for index, outcome in enumerate(sample.outcomes)
        if outcome.name == HEADLINE_OUTCOME and outcome.draw == 0
        for name, terms in MODELS.items()
        if "learnable" in terms
    ]
    if not fitted:
        return []
    columns_of = [columns for _, _, columns in fitted]
    models = [model_of(sample.by_prompt, columns) for columns in columns_of]
    both = two_way(models, columns_of, sample.scaled, sample.outcomes[0].prompts, tokens)
    n_tokens = len(np.unique(tokens))
    return [
        row | {"n_tokens": n_tokens}
        for (outcome, name, _), model, covariance in zip(fitted, models, both, strict=True)
        for row in _rows(outcome, sample.k, name, model, covariance, resampling.seed)
    ]


def _rows(outcome: Outcome, k: int, name: str, model: Model, both: Array, seed: int) -> list[dict[str, Any]]:
    covariances = {"crv1_error": crv1(model), "crv3_error": crv3(model), "two_way_error": both}
    n_prompts = len(model.gram)
    rows = []
    for contrast, term in zip(*contrasts_of(MODELS[name]), strict=True):
        if term not in TESTED:
            continue
        full = np.r_[0.0, contrast]
        estimate = float(full @ model.coefficients)
        errors = {key: _error(full, covariance) for key, covariance in covariances.items()}
        crv3_error = errors["crv3_error"]
        wild = None
        if n_prompts < FEW_PROMPTS:
            wild = wild_p_value(model, full, derive_seed(seed, "wild", name, term, k))
        rows.append(
            {"probe_id": outcome.probe_id, "update": outcome.update, "outcome": outcome.name, "k": k}
            | {"model": name, "term": term, "estimate": estimate}
            | errors
            | {"crv3_p": float(2 * t.sf(abs(estimate) / crv3_error, n_prompts - 1)) if crv3_error else None}
            | {"wild_p": wild, "n_positions": model.n, "n_prompts": n_prompts}
        )
    return rows


def _error(contrast: Array, covariance: Array) -> float | None:
    """Standard error of a contrast; None where a two-way covariance is not positive there."""
    variance = contrast @ covariance @ contrast
    return float(np.sqrt(variance)) if variance > 0 else None


def _sandwich(model: Model, squares: Array, groups: int) -> Array:
    """Put the sum of the clusters' squared scores, shape (k, k), between two breads, for so many clusters."""
    k = len(squares)
    factor = groups / (groups - 1) * (model.n - 1) / (model.n - k)
    covariance: Array = factor * model.bread @ squares @ model.bread
    return covariance

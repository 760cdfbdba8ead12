"""Prompt-grouped cross-validation of cubic rank splines, from cross-products of each prompt.

Least squares on any folds, and its squared errors on the one left out, need no more than X'X, X'y and y'y of each
prompt. Rows are met again only to predict them, for one set of predictors at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from teachdiag.analysis.bank.normalised import Key
from teachdiag.analysis.resampling.bootstrap import Block, prompt_blocks
from teachdiag.analysis.step.splines import Splines
from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Codes
from teachdiag.seeds import derive_seed

_RANK_CUT = 1e-10  # of the largest eigenvalue of a cross-product


def draw_folds(n_prompts: int, folds: int, repeats: int, seed: int) -> Codes:
    """Assign each prompt to a fold, at random and as evenly as possible, anew in each repeat: (repeats, prompts).

    Raises:
        EstimationError: there are more folds than prompts.
    """
    if folds > n_prompts:
        raise EstimationError(f"--folds is {folds} and the bank has {n_prompts} prompts: ask for fewer folds")
    orders = [np.random.default_rng(derive_seed(seed, "folds", r)).permutation(n_prompts) for r in range(repeats)]
    return (np.stack(orders) % folds).astype(np.int64)


Products = tuple[Codes, Array]  # some prompts, shape (p,), and cross-products of [design, values], shape (p, ., .)


class Data(NamedTuple):
    """What is predicted, and from what.

    `splines`: of the scores, over n rows. `scores`: their keys. `values`: m outcomes, shape (n,) each. `prompts`: shape
    (n,). `folds`: shape (repeats, prompts).
    """

    splines: Splines
    scores: Sequence[Key]
    values: Sequence[Array]
    prompts: Codes
    folds: Codes

    def members(self, keys: Sequence[Key]) -> list[int]:
        """Return the indices of some scores."""
        return [list(self.scores).index(key) for key in keys]

    def at(self, prompts: Codes, rows: Codes) -> "Data":
        """Return the data of some prompts, rising, at some of their rows."""
        values, owners = [values[rows] for values in self.values], np.searchsorted(prompts, self.prompts[rows])
        return Data(self.splines.at(rows), self.scores, values, owners, self.folds[:, prompts])

    def products(self) -> Iterator[Products]:
        """Yield blocks of prompts, shape (p,), with the cross-products of [design, values] of each, shape (p, ., .)."""
        for block in prompt_blocks(self.prompts):
            extended = np.column_stack(
                [self.splines.design(block.rows), *(values[block.rows] for values in self.values)]
            )
            yield block.prompts, block.products(extended)

    def designs(self, keys: Sequence[Key]) -> Iterator[tuple[Block, Array]]:
        """Yield blocks of prompts with the design of some scores at their rows, shape (rows, columns)."""
        splines = self.splines.only(self.members(keys))
        return ((block, splines.design(block.rows)) for block in prompt_blocks(self.prompts))


class Fits(NamedTuple):
    """Least squares on the other folds, for every fold of every assignment, set of predictors and outcome.

    Fits to several draws of prompts stand side by side: all m outcomes of the first, then those of the next.

    `means`: shape (repeats, folds, draws m), mean outcome of the other folds. `columns`: of the design, intercept
    first, for each set. `coefficients`: shape (repeats, folds, columns, draws m) for each set, of what an outcome has
    beyond that mean.
    """

    means: Array
    columns: list[Codes]
    coefficients: list[Array]

    @classmethod
    def joined(cls, fits: Sequence["Fits"]) -> "Fits":
        """Put fits to several draws side by side."""
        coefficients = [np.concatenate(of_set, -1) for of_set in zip(*(f.coefficients for f in fits), strict=True)]
        return cls(np.concatenate([f.means for f in fits], -1), fits[0].columns, coefficients)

    def part(self, outcomes: slice) -> "Fits":
        """Return some of the fits that stand side by side."""
        return Fits(self.means[..., outcomes], self.columns, [of_set[..., outcomes] for of_set in self.coefficients])


def fit_other_folds(
    data: Data,
    sets: Mapping[Key, Sequence[Key]],
    products: Iterable[Products],
    weights: Array | None = None,
) -> Fits:
    """Fit every set of predictors to every outcome, each time without one fold.

    One cross-product of the design serves every set: a set's is the part that belongs to its columns. Those of the
    folds are summed anew for each that is left out, so that a fold's rows never touch its own fit, by rounding neither.

    Args:
        data: predictors and outcomes.
        sets: the scores in each set of predictors.
        products: those of the data.
        weights: how often each prompt counts in each draw, shape (draws, prompts); by default once, in a single one.
    """
    n_folds, q = int(data.folds.max()) + 1, len(data.splines.owners)
    weights = np.ones((1, data.folds.shape[1])) if weights is None else weights
    of_fold = data.folds[:, None] == np.arange(n_folds)[:, None]
    width = q + len(data.values)
    folds = np.zeros((len(weights), *of_fold.shape[:2], width, width))
    for owners, by_prompt in products:
        folds += np.tensordot(weights[:, None, None, owners] * of_fold[..., owners], by_prompt, 1)
    training = np.einsum("fg,drgij->drfij", 1.0 - np.eye(n_folds), folds)
    gram, moments = training[..., :q, :q], training[..., :q, q:]
    means = moments[..., 0, :] / gram[..., 0, :1]  # the design's first column is the intercept
    centred = moments - gram[..., :1] * means[..., None, :]
    columns = [data.splines.columns(data.members(keys)) for keys in sets.values()]
    # Saturated scores leave basis functions that hardly any row reaches: the cut leaves these at 0.
    coefficients = [
        np.linalg.pinv(gram[..., members[:, None], members], rcond=_RANK_CUT, hermitian=True) @ centred[..., members, :]
        for members in columns
    ]
    return Fits(_side_by_side(means), columns, [_side_by_side(of_set) for of_set in coefficients])


def _side_by_side(of_draws: Array) -> Array:
    """Put the draws, which come first, beside the outcomes: (draws, ..., m) to (..., draws m)."""
    moved = np.moveaxis(of_draws, 0, -2)
    return moved.reshape(*moved.shape[:-2], -1)


def squared_errors(data: Data, fits: Fits, products: Iterable[Products]) -> Iterator[tuple[Codes, Array, Array]]:
    """Yield each prompt's squared errors, by the fits that have not seen it, averaged over fold assignments.

    Args:
        data: predictors and outcomes.
        fits: of all sets, to one draw or several.
        products: those of the data.

    Yields:
        Some prompts, shape (p,), with their sums of (y - mean of the other folds)^2, shape (p, draws m), and of
        (y - prediction)^2, shape (p, sets, draws m).
    """
    q, width = len(data.splines.owners), fits.means.shape[-1]
    for owners, by_prompt in products:
        with_y, squares = by_prompt[:, :q, q:], np.diagonal(by_prompt[:, q:, q:], 0, 1, 2)
        with_y, squares = (np.concatenate([each] * (width // len(data.values)), -1) for each in (with_y, squares))
        means = [by_fold[assigned] for by_fold, assigned in zip(fits.means, data.folds[:, owners], strict=True)]
        errors = [_errors(by_prompt[:, :1, :1], with_y[:, :1], squares, mean[:, None]) for mean in means]
        unexplained = np.zeros((len(owners), len(fits.columns), width))
        for number, (columns, coefficients) in enumerate(zip(fits.columns, fits.coefficients, strict=True)):
            within, moment = by_prompt[:, columns[:, None], columns], with_y[:, columns]
            for repeat, mean in enumerate(means):
                whole = coefficients[repeat, data.folds[repeat, owners]]
                whole[:, 0] += mean
                unexplained[:, number] += _errors(within, moment, squares, whole) / len(means)
        yield owners, np.mean(errors, axis=0), unexplained


def out_of_fold(data: Data, fits: Fits, designs: Iterable[tuple[Block, Array]], number: int) -> Array:
    """Predict every row by the fits of one set that have not seen its prompt, averaged over fold assignments.

    What is predicted is the outcome beyond the mean of the other folds: that mean falls as a fold's own mean rises, so
    that ranks of whole predictions would tend to run against the outcome where there is nothing to predict.

    Args:
        data: predictors and outcomes.
        fits: of all sets, to one draw or several.
        designs: of the set's scores.
        number: of the set among all.

    Returns:
        Shape (draws m, n), unit of the outcomes.
    """
    predicted = np.empty((fits.means.shape[-1], len(data.prompts)))
    for block, design in designs:
        folds, groups = np.unique(data.folds[:, block.prompts], axis=1, return_inverse=True)  # which share their fits
        of_groups = zip(fits.coefficients[number], folds, strict=True)
        mean = np.mean([fitted[assigned] for fitted, assigned in of_groups], axis=0)
        of_rows = np.repeat(groups.ravel(), np.diff(block.cuts, prepend=0, append=len(block.rows)))
        for group, fitted in enumerate(mean):
            inside = np.flatnonzero(of_rows == group)
            predicted[:, block.rows[inside]] = (design[inside] @ fitted).T
    return predicted


def _errors(gram: Array, with_y: Array, squares: Array, coefficients: Array) -> Array:
    """Sums of (y - X b)^2 from X'X (p, c, c), X'y and b (p, c, m), and y'y (p, m): shape (p, m)."""
    errors: Array = squares + (coefficients * (gram @ coefficients - 2 * with_y)).sum(axis=1)
    return errors

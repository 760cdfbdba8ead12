"""What is asked of a real step, fixed before its data are seen: a few primary claims, and the secondary ones.

A claim is one number of the estimates table, asked to lie above 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from teachdiag.analysis.bank.measurements import OUTCOMES
from teachdiag.analysis.step.design import GAP
from teachdiag.analysis.step.support_contrast import Q3_CONTRAST
from teachdiag.settings import HEADLINE_K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BASE, BASE_LABEL, JUDGED, members_of, on_top_of_base, set_label, versus_base

_MEASURES = (("cv_r2", "cross-validated R2"), ("cv_rank", "out-of-fold rank correlation"))
_STANDARDISED, _PER_UNIT = ("standardized", "standardised"), ("slope", "per unit of norm")


@dataclass(frozen=True)
class Claim:
    """One question put to the estimates: where its number stands, and what either sign of it says.

    `level` is the analysis that holds what either of two `rivals` achieves by itself, where the number is the first's
    less the second's. `primary` claims are judged at the headline K, without regard to how many others there are, and
    have a `short` form for tables.
    """

    finding: str
    analysis: str
    term: str
    number: str
    above: str
    below: str
    unit: str = "1"
    per_k: bool = True
    level: str = ""
    rivals: tuple[str, ...] = ()
    outcome: str = OUTCOME
    primary: bool = False
    short: str = ""

    @property
    def headline_k(self) -> int | None:
        """The support size at which it is judged first; None where it has none."""
        return HEADLINE_K if self.per_k else None


def gain_claim() -> Claim:
    """Return the claim that everything else presupposes: that the step taught the student something."""
    above = "the step brings the student closer to the teacher on the bank"
    below = "the step takes the student further from the teacher on the bank"
    return Claim(
        "the step helps",
        "mean",
        "bank",
        "mean gain",
        above,
        below,
        "nats",
        per_k=False,
        primary=True,
        short="the step helps",
    )


def slope_claims(outcome: str, scales: Sequence[tuple[str, str]]) -> list[Claim]:
    """Return the claims about beta_L - beta_I on one outcome, with and without H x D, at the given scales."""
    return [
        Claim(
            f"beta_L > beta_I ({model}, {scale_name})",
            f"{scale}_{model}",
            GAP,
            f"beta_L - beta_I, {scale_name}",
            f"{outcome} rises more with learnable than with incompatible disagreement{beside}",
            f"{outcome} rises more with incompatible than with learnable disagreement{beside}",
            "1" if scale == "standardized" else OUTCOMES[outcome],
            outcome=outcome,
            primary=(outcome, model, scale) == (OUTCOME, "decomposition", "slope"),
            short="beta_L > beta_I per unit of norm",
        )
        for model, beside in (("decomposition", ""), ("nested", ", beside entropy x disagreement"))
        for scale, scale_name in scales
    ]


def validity_claims() -> list[Claim]:
    """Return the claims about what predicts gain on prompts not seen, beyond raw KL."""
    sides = (
        (str, "{} predicts gain better than {} alone", "{} predicts gain worse than {} alone"),
        (
            on_top_of_base,
            "{} improves on {} when added to it",
            "{} adds nothing to {}: with it, gain is predicted worse",
        ),
    )
    return [
        Claim(
            f"{above.format(set_label(name), BASE_LABEL)} ({measure})",
            f"{analysis}_difference",
            versus_base(of(name)),
            f"difference in {measure}",
            above.format(set_label(name), BASE_LABEL),
            below.format(set_label(name), BASE_LABEL),
            per_k=members_of(name)[0].has_k,
            level=analysis,
            rivals=(of(name), BASE),
            primary=of is str and analysis == "cv_rank" and name in ("compatibility", "decomposition"),
            short=f"{set_label(name)} ranks gain better than {BASE_LABEL}",
        )
        for name in JUDGED
        for of, above, below in sides
        for analysis, measure in _MEASURES
    ]


def contrast_claim() -> Claim:
    """Return TA-OPD's own claim: inside Q3 gain is higher where C is high. Where C is saturated it has no number."""
    above = "inside Q3 the step gains more at high than at low C"
    below = "inside Q3 the step gains more at low than at high C"
    number = "mean gain in the upper less the lower third of C"
    return Claim("high C beats low C inside Q3", Q3_CONTRAST, "compatibility", number, above, below, "nats")


CLAIMS = (
    gain_claim(),
    *slope_claims(OUTCOME, (_STANDARDISED, _PER_UNIT)),
    *validity_claims(),
    contrast_claim(),
    *(claim for outcome in OUTCOMES if outcome != OUTCOME for claim in slope_claims(outcome, (_STANDARDISED,))),
)
PRIMARY_CLAIMS = tuple(claim for claim in CLAIMS if claim.primary)

"""Problems of the testbed: chains of arithmetic modulo 100, with every step of the solution written out.

A problem is worked from left to right, and each number is one token, so that a language model of a few hundred thousand
parameters can learn it, and most of a solution's tokens are copies while a few are decisions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from teachdiag.seeds import derive_seed

MODULUS = 100
TERMS = (5, 7)  # numbers in a problem, both included
FACTORS = (2, 9)  # what a product multiplies by, both included
ANSWER = "answer"  # the word before the final number
WORDS = ("+", "-", "*", "=", ";", ANSWER)  # every word that is no number
_SIGNS = np.array(["+", "-", "*"])


@dataclass(frozen=True)
class Problem:
    """One problem: what is asked, the solution step by step, and the final number."""

    question: str
    solution: str
    answer: str


def problems(size: int, seed: int) -> Iterator[Problem]:
    """Yield `size` problems, the same ones for the same seed; a shorter list is the start of a longer one."""
    rng = np.random.default_rng(derive_seed(seed, "arithmetic"))
    for _ in range(size):
        signs = rng.choice(_SIGNS, rng.integers(TERMS[0], TERMS[1] + 1) - 1)
        numbers = rng.integers(0, MODULUS, len(signs) + 1)
        numbers[1:] = np.where(signs == "*", rng.integers(FACTORS[0], FACTORS[1] + 1, len(signs)), numbers[1:])
        yield _worked(numbers.tolist(), signs.tolist())


def _worked(numbers: list[int], signs: list[str]) -> Problem:
    value, steps, asked = numbers[0], [], [str(numbers[0])]
    for sign, number in zip(signs, numbers[1:], strict=True):
        result = {"+": value + number, "-": value - number, "*": value * number}[sign] % MODULUS
        steps.append(f"{value} {sign} {number} = {result} ;")
        asked += [sign, str(number)]
        value = result
    return Problem(f"{' '.join(asked)} =", f"{' '.join(steps)} {ANSWER} {value}", str(value))

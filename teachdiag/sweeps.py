"""Sweeps: which students are trained, from a recipe of arms, budgets and seeds."""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from teachdiag.errors import SettingsError, cause
from teachdiag.selectors.weighting import FULL, Selection
from teachdiag.settings import TrainSettings
from teachdiag.settings.base import COUNTABLE, fits, in_words, shown

TABLES = ("sweep", "arms")  # tables of a recipe beside [train]
BASE, TEACHER = UNTRAINED = "base", "teacher"  # judged beside the arms
_ENTRIES = {"arms": list[str], "budgets": list[float], "seeds": int}
_SHARED = ("sweep", "workers", "student", "teacher", "budget", "seed")  # options that no arm has for itself


@dataclass(frozen=True)
class Cell:
    """One student of a sweep: its arm, and the settings that it is trained with."""

    arm: str
    settings: TrainSettings

    @property
    def budget(self) -> float:
        """Share of positions kept; 1 for full OPD."""
        return 1.0 if self.settings.selector == FULL else self.settings.budget

    @property
    def name(self) -> str:
        """A name for files, without characters that file systems dislike."""
        arm = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.arm)
        return f"{arm}-{100 * self.budget:g}pct-seed{self.settings.seed}"

    @property
    def selection(self) -> Selection:
        """Which positions carry the loss."""
        settings = self.settings
        return Selection(
            selector=settings.selector,
            budget=settings.budget,
            k=settings.k,
            normalisation=settings.normalisation,
            scope=settings.scope,
            minimum=settings.min_keep,
            ties=settings.ties,
            soft=settings.soft,
            warmup=settings.warmup,
            seed=settings.seed,
        )


def plan(settings: TrainSettings) -> list[Cell]:
    """Return the cells of a training stage: the one that the settings describe, or all of a sweep's, seed by seed.

    Equal seeds of different arms share prompts, their order, the random numbers of rollouts, and the initial weights.

    Raises:
        SettingsError: the recipe is not what it should be, or some arm's settings are impossible; the message says
            which.
    """
    cells = _sweep(settings) if settings.sweep else [Cell(settings.selector, settings)]
    for cell in cells:
        try:
            cell.selection  # noqa: B018 (building it is the check)
        except SettingsError as error:
            raise SettingsError(f"arm {cell.arm}: {error}") from error
    return cells


def _sweep(settings: TrainSettings) -> list[Cell]:
    path = Path(settings.sweep)
    arms, budgets, seeds = _read(path)
    cells: dict[str, Cell] = {}
    for seed in range(settings.seed, settings.seed + seeds):
        for budget in budgets:
            for arm, options in arms.items():
                try:
                    varied = replace(settings, sweep="", workers=1, budget=budget, seed=seed, **options)
                except (SettingsError, TypeError) as error:
                    raise SettingsError(f"{path}: arm {arm} at budget {budget}: {error}") from error
                cell = Cell(arm, varied)
                kept = cells.setdefault(cell.name.casefold(), cell)  # full OPD has no budget: it is one cell a seed
                if (kept.arm, kept.budget) != (arm, cell.budget):
                    raise SettingsError(
                        f"{path}: arm {kept.arm} at budget {kept.budget} and arm {arm} at budget {cell.budget} would "
                        f"both be files named {cell.name}: rename one"
                    )
    return list(cells.values())


def read_recipe(path: Path, called: str) -> dict[str, Any]:
    """Return what a TOML file of options says.

    Args:
        path: the file.
        called: what the file is, for messages.

    Raises:
        SettingsError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{called} {shown(str(path))} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise SettingsError(f"{called} {shown(str(path))} is not TOML: {cause(error)}") from error


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], list[float], int]:
    """Return each arm's own options, the budgets, and the number of seeds."""
    content = read_recipe(path, "sweep")
    table, described = content.get("sweep", {}), content.get("arms", {})
    if not isinstance(table, dict) or not isinstance(described, dict):
        raise SettingsError(f"{path}: [sweep] and [arms] are tables")
    for name, hint in _ENTRIES.items():
        if not fits(table.get(name), hint) or not table[name]:
            raise SettingsError(f"{path}: [sweep] needs {name}, {in_words(hint)}")
    unknown = [*(table.keys() - _ENTRIES.keys()), *(f"arms.{arm}" for arm in described.keys() - set(table["arms"]))]
    if unknown:
        raise SettingsError(f"{path}: unknown entries {', '.join(sorted(unknown))}; [sweep] has {', '.join(_ENTRIES)}")
    reserved = [arm for arm in table["arms"] if arm in UNTRAINED]
    if reserved:
        raise SettingsError(f"{path}: {reserved[0]} names a model that is not trained: give that arm another name")
    if not 1 <= table["seeds"] * len(table["budgets"]) * len(table["arms"]) <= COUNTABLE:
        raise SettingsError(f"{path}: seeds is {table['seeds']}: it must be from 1 up, with at most {COUNTABLE} cells")
    arms = {arm: _options(path, arm, described.get(arm, {"selector": arm})) for arm in table["arms"]}
    return arms, [float(budget) for budget in table["budgets"]], table["seeds"]


def _options(path: Path, arm: str, table: Any) -> dict[str, Any]:  # noqa: ANN401 (whatever TOML holds)
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: arms.{arm} is {shown(table)}: it must be a table of options")
    options = {key.replace("-", "_"): value for key, value in table.items()}
    unknown = options.keys() - ({entry.name for entry in fields(TrainSettings)} - set(_SHARED))
    if unknown:
        raise SettingsError(f"{path}: [arms.{arm}] has no option {', '.join(sorted(unknown))} of its own")
    return options

"""One frozen settings class a stage, checked when built.

A field is declared once, with its help text and unit; the command line and TOML recipes are made from the fields.
"""

from teachdiag.settings.analysis import AnalyzeSettings, FiguresSettings, ReportSettings
from teachdiag.settings.base import (
    CLOCK,
    EMBEDDED,
    EMBEDDED_DROPPED_LAYER,
    HEADLINE_BUDGET,
    HEADLINE_BUDGETS,
    HEADLINE_K,
    HEADLINE_OUTCOME,
    HEADLINE_SELECTORS,
    MATCHES,
    NOISE_SAFETY,
    SHORT_ENOUGH,
    SHRINKS,
    SUPPORT_SIZES,
    Derivative,
    DType,
    EndOfText,
    LossMean,
    Match,
    Normalisation,
    Optimizer,
    Rollouts,
    Sampling,
    Scope,
    Split,
    TeacherPrompt,
    Ties,
    flag,
    headline_budget,
    template_options,
)
from teachdiag.settings.capture import CaptureSettings, PairSettings
from teachdiag.settings.check_loss import CheckLossSettings
from teachdiag.settings.importing import ImportSettings, NamedImportSettings
from teachdiag.settings.kind import Kind
from teachdiag.settings.planning import CalibrateSettings, PlanSettings
from teachdiag.settings.probe import KINDS, ProbeSettings, kind_reads
from teachdiag.settings.teachers import CompareTeachersSettings
from teachdiag.settings.timeline import TimelineSettings
from teachdiag.settings.training import EvaluateSettings, ProtocolSettings, TrainSettings

__all__ = [
    "CLOCK",
    "EMBEDDED",
    "EMBEDDED_DROPPED_LAYER",
    "HEADLINE_BUDGET",
    "HEADLINE_BUDGETS",
    "HEADLINE_K",
    "HEADLINE_OUTCOME",
    "HEADLINE_SELECTORS",
    "KINDS",
    "MATCHES",
    "NOISE_SAFETY",
    "SHORT_ENOUGH",
    "SHRINKS",
    "SUPPORT_SIZES",
    "AnalyzeSettings",
    "CalibrateSettings",
    "CaptureSettings",
    "CheckLossSettings",
    "CompareTeachersSettings",
    "DType",
    "Derivative",
    "EndOfText",
    "EvaluateSettings",
    "FiguresSettings",
    "ImportSettings",
    "Kind",
    "LossMean",
    "Match",
    "NamedImportSettings",
    "Normalisation",
    "Optimizer",
    "PairSettings",
    "PlanSettings",
    "ProbeSettings",
    "ProtocolSettings",
    "ReportSettings",
    "Rollouts",
    "Sampling",
    "Scope",
    "Split",
    "TeacherPrompt",
    "Ties",
    "TimelineSettings",
    "TrainSettings",
    "flag",
    "headline_budget",
    "kind_reads",
    "template_options",
]

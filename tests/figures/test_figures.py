"""Figures: the files, and that the artists hold the numbers of the tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from planted import World, plant
from stages import amend

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import CONTRASTS, MIN_CELL, PRIMARY
from teachdiag.cli import main
from teachdiag.errors import ArtefactError, RunError
from teachdiag.figures import plots
from teachdiag.figures.comparison import compare_runs
from teachdiag.figures.plots.coefficients import coefficients_figure, draw_coefficients
from teachdiag.figures.plots.deciles import draw_profile
from teachdiag.figures.plots.gain_surface import draw_gain_surface
from teachdiag.figures.plots.plane import plane_figure
from teachdiag.figures.plots.position_profile import position_profile_figure
from teachdiag.figures.plots.q3_contrast import q3_contrast_figure
from teachdiag.figures.plots.specification_curve import choice_levels, draw_curve, draw_matrix
from teachdiag.figures.plots.top_n import top_n_figure
from teachdiag.figures.plots.validity import validity_figure
from teachdiag.figures.publish import draw_figures, publish
from teachdiag.figures.run_tables import StepTables, load_tables, steps_of
from teachdiag.figures.style import PLACEBO
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from teachdiag.signals import raised

pytestmark = pytest.mark.slow

STEP_FIGURES = (
    *("coefficients", "q3_contrast", "validity", "gain_surface", "deciles", "top_n"),
    *("position_profile", "specification_curve"),
)
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = World(slope_learnable=0.06, slope_incompatible=0.01, null_theta0=True)
    run = plant(tmp_path_factory.mktemp("figures") / "run", world)
    run_analysis(run, AnalyzeSettings(draws=100), QUIET)
    return run


@pytest.fixture(scope="module")
def step(run: Path) -> StepTables:
    return steps_of(load_tables(run))[0]


def test_all_figures_are_written_and_the_same_twice(run: Path) -> None:
    files = draw_figures(run, QUIET)
    names = ("plane", *STEP_FIGURES)
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    captions = {"captions.json", "captions.md"}
    places = {file.relative_to(run / "figures").as_posix() for file in files}
    assert places == pictures | captions | {f"dark/{name}.svg" for name in names}
    before = {f: f.read_bytes() for f in files}
    begin = (b"\x89PNG", b"<?xml", b"%PDF")
    assert all(content.startswith(begin) for file, content in before.items() if file.name not in captions)
    draw_figures(run, QUIET)
    assert {f: f.read_bytes() for f in files} == before
    assert list((run / "figures").rglob("*.part")) == []


def test_one_figure_alone_and_none_that_is_not_there(run: Path) -> None:
    figure = [".png", ".svg", ".pdf", ".svg", ".json", ".md"]  # its dark variant, and everyone's captions
    assert [file.suffix for file in publish(run, QUIET, "plane")] == figure
    assert [file.suffix for file in publish(run, QUIET, "top_n")] == [".parquet", ".csv", ".md", *figure]
    with pytest.raises(ArtefactError, match="has neither figure nor table 'lds': its figures are plane, coefficients"):
        publish(run, QUIET, "lds")


def test_the_names_of_all_figures_and_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["teachdiag", "figures", "--list"])
    with pytest.raises(SystemExit, match="0"):
        main()
    listed = capsys.readouterr().out.splitlines()
    assert {
        "plane figure bank",
        "coefficients figure step",
        "lds figure lds",
        "q3_contrast table step",
        "token_lds table lds",
    } <= set(listed)
    modules = {path.stem for path in Path(plots.__file__).parent.glob("*.py")}
    drawn = {line.split()[0] for line in listed if " figure " in line}
    assert modules - drawn == {"__init__", "grid", "forest", "accuracy"}  # what figures share, and that of a training


def test_several_runs_in_one_table_that_says_how_they_differ(run: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "other", World(slope_learnable=0.02, seed=3))
    run_analysis(other, AnalyzeSettings(draws=100), QUIET)
    note = other / "probes/step.json"
    amend(note, lambda content: content["settings"].update(loss="forward_kl"))
    files = compare_runs([other, run])
    kinds = ("parquet", "csv", "md", "png", "svg", "pdf")
    pictures = {f"specification_curve.{kind}" for kind in kinds[3:]} | {"captions.json", "captions.md"}
    claims = {f"claims.{kind}" for kind in kinds[:3]}
    assert {file.name for file in files} == {f"comparison.{kind}" for kind in kinds} | pictures | claims
    answered = pd.read_parquet(tmp_path / "comparison/claims.parquet").set_index(["claim", "run"])
    for name, own in (("other", other), ("run", run)):
        for row in PRIMARY.read(own / "analysis/primary.parquet").to_dict("records"):
            answer = answered.loc[row["claim"], name]
            assert [answer["status"], answer["estimate"]] == [row["status"], row["estimate"]]
    rows = pd.read_parquet(tmp_path / "comparison/comparison.parquet")
    assert list(dict.fromkeys(rows["run"])) == ["other", "run"]
    assert len(rows) == 2 * 3 * 2  # runs, K, designs
    for name in ("comparison", "specification_curve"):
        assert f"]({name}.svg)" in (tmp_path / "comparison/captions.md").read_text()
    page = (tmp_path / "comparison/comparison.md").read_text()
    assert "The runs differ in loss." in page
    for name, own in (("other", other), ("run", run)):
        theirs = CONTRASTS.read(own / "analysis/contrasts.parquet")
        theirs = theirs[(theirs["probe_id"] == "step") & (theirs["outcome"] == "gain")]
        theirs = theirs[theirs["score"] == "compatibility"]
        mine = rows[rows["run"] == name].set_index(["k", "design"])["estimate"]
        for row in theirs[theirs["design"] != "matched once"].itertuples():
            assert mine[row.k, row.design] == pytest.approx(row.estimate, nan_ok=True)


def test_coefficients_are_those_of_the_table(step: StepTables) -> None:
    real, placebo = step.coefficients("one_step"), step.coefficients("shuffled_teacher")
    ax = draw_coefficients([real, placebo], Figure().subplots())
    terms = ("learnable", "incompatible", "learnable - incompatible")
    expected = [real[(real["term"] == term) & (real["k"] == k)].iloc[0] for term in terms for k in (8, 16, 32)]
    y = {label.get_text(): place for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert list(y)[::3] == [f"on {raised('D^L')}, K=8", f"on {raised('D^I')}, K=8", "difference, K=8"]
    bars, dots = ax.collections
    ends = {segment[0, 1]: segment[:, 0].tolist() for segment in bars.get_segments()}
    means = {height: x for x, height in dots.get_offsets()}
    for line, row in enumerate(expected):
        assert ends[line] == [row["ci_low"], row["ci_high"]]
        assert means[line] == row["estimate"]
    ticks = dict(zip(ax.get_lines()[0].get_ydata(), ax.get_lines()[0].get_xdata(), strict=True))
    (grey,) = placebo[(placebo["term"] == "incompatible") & (placebo["k"] == 16)]["estimate"]
    assert ticks[4] == grey


def test_what_could_not_be_estimated_is_said(step: StepTables) -> None:
    assert step.coefficients("theta0").empty
    assert "Not estimable under theta0, no step: the outcome is constant." in coefficients_figure(step).caption


def test_profile_is_that_of_the_table(step: StepTables) -> None:
    rows = step.profile("one_step", "learnable", 16)
    ax = draw_profile(rows, Figure().subplots())
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), rows.sort_values("decile")["estimate"])


def test_contrasts_and_validity_hold_the_numbers_of_their_tables(step: StepTables) -> None:
    thirds, matched = q3_contrast_figure(step).axes
    contrasts = step.contrasts[(step.contrasts["probe_id"] == "step") & (step.contrasts["outcome"] == "gain")]
    for ax, design in ((thirds, "thirds"), (matched, "matched")):
        rows = contrasts[(contrasts["design"] == design) & contrasts["estimate"].notna()]
        rows = rows[(rows["score"] == "compatibility") | (rows["k"] == 16)]
        assert sorted(ax.collections[1].get_offsets()[:, 0]) == pytest.approx(sorted(rows["estimate"]))
    rows = step.estimates[(step.estimates["probe_id"] == "step") & (step.estimates["outcome"] == "gain")]
    rows = rows[(rows["analysis"] == "cv_rank_difference") & (rows["k"].isna() | (rows["k"] == 16))]
    drawn = validity_figure(step).axes[1].collections[1].get_offsets()[:, 0]
    assert set(drawn) <= set(rows["estimate"])
    assert len(drawn) == 7


def test_surface_is_that_of_the_table_and_sparse_cells_are_blank(step: StepTables) -> None:
    cells = step.surface("gain_by_learnable_incompatible", 16, "one_step")
    drawn = draw_gain_surface(cells, Figure().subplots(), 1.0).get_array().reshape(10, 10)
    assert (cells["n_positions"] < MIN_CELL).any()
    for cell in cells.itertuples():
        if cell.n_positions >= MIN_CELL:
            assert drawn[cell.y_bin, cell.x_bin] == cell.value
        else:
            assert np.ma.is_masked(drawn[cell.y_bin, cell.x_bin])


def test_plane_marks_q3_and_states_its_medians(step: StepTables) -> None:
    figure = plane_figure(step)
    assert [ax.patches[-1].get_bbox().extents.tolist() for ax in figure.axes[:2]] == [[0, 50, 50, 100]] * 2
    assert f"{step.q3('median_forward_kl'):.3g} nats" in figure.caption


def test_selectors_hold_the_numbers_of_their_table(step: StepTables) -> None:
    rows = step.top_n[(step.top_n["probe_id"] == "step") & (step.top_n["outcome"] == "gain")]
    rows = rows[(rows["budget"] == 0.1) & (rows["k"].isna() | (rows["k"] == 16))].set_index("selector")
    (ax,) = top_n_figure(step).axes
    assert ax.collections[1].get_offsets()[:3, 0].tolist() == [
        rows["estimate"][name] for name in ("learnable", "incompatible", "forward_kl")
    ]
    (bank,) = (line for line in ax.get_lines() if line.get_label() == "whole bank")
    assert set(bank.get_xdata()) == {rows["estimate"]["random"]}


def test_specifications_are_sorted_over_the_choices_that_were_made(step: StepTables) -> None:
    rows = step.own_specifications
    rows = rows[(rows["quantity"] == "beta_L - beta_I") & rows["estimate"].notna()]
    levels = choice_levels(rows)
    assert [column for column, _ in levels].count("trimming") == 3
    assert "loss" not in dict(levels)  # which is the same everywhere
    curve, matrix = Figure().subplots(2)
    drawn = draw_curve(rows, curve)
    draw_matrix(drawn, levels, matrix)
    real = rows[rows["probe_id"] == "step"]
    size = real["outcome_spread"].where(real["measure"] == "per unit of norm", 1.0)
    np.testing.assert_allclose(curve.get_lines()[-3].get_ydata(), np.sort(real["estimate"] / size))
    shown = np.asarray(matrix.get_images()[0].get_array())[..., 3]  # how opaque
    shown = shown[:: len(shown) // len(levels)]
    for line, (column, value) in zip(shown, levels, strict=True):
        np.testing.assert_array_equal(line.astype(bool), drawn[column] == value)
    claimed = curve.get_lines()[-2].get_xdata()
    assert drawn["headline"].to_numpy().nonzero()[0].tolist() == list(claimed)
    greys = [line for line in curve.get_lines() if line.get_color() == PLACEBO]
    assert len(greys) == 2  # nothing moves under theta0
    assert {len(line.get_ydata()) for line in greys} <= set(rows.groupby("probe_id").size())


def test_positions_have_their_gain_and_their_share(step: StepTables) -> None:
    upper, lower = position_profile_figure(step).axes
    assert [text.get_text() for text in lower.get_xticklabels()] == ["0", "1", "2", "3-4", "5-8", "9-16", "17+"]
    rows = step.buckets[(step.buckets["probe_id"] == "step") & (step.buckets["outcome"] == "gain")]
    means = rows[(rows["score"] == "position") & (rows["statistic"] == "mean")].sort_values("bucket")["estimate"]
    (dots,) = (line for line in upper.get_lines() if line.get_marker() == "o")
    np.testing.assert_array_equal(dots.get_ydata(), means)
    (positions,) = (line for line in lower.get_lines() if line.get_label() == "of the positions")
    assert sum(positions.get_ydata()) == pytest.approx(1)


def test_figures_need_an_analysis(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no analyze stage: run `teachdiag analyze"):
        draw_figures(tmp_path, QUIET)

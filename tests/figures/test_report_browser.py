"""The report in a real browser: it renders, recolours, shows the right card, and a keyboard reaches everything.

The truth: the run's tables, read by pandas.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from teachdiag.figures.report.html import write_report
from teachdiag.figures.report.side_by_side import write_side_by_side
from teachdiag.figures.report.tokens_page import tokens_page
from teachdiag.progress import Reporter
from teachdiag.settings import ReportSettings

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("TEACHDIAG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in TEACHDIAG_CHROMIUM"),
]
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


PATIENCE = 120_000  # milliseconds: a machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    """One browser for all; every page is a session of its own in it."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def _shown(browser: "sync_api.Browser", path: Path) -> Iterator["sync_api.Page"]:
    """Open a file from disk; console, errors and requests are watched."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    yield page
    assert troubles == []
    page.close()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, analysed_once: Path) -> Path:
    """A run of the tiny pair with its report, to be read alone."""
    run = Path(shutil.copytree(analysed_once, tmp_path_factory.mktemp("reported") / "run"))
    write_report(run, ReportSettings(), Reporter(quiet=True))
    return run


@pytest.fixture
def opened(browser: "sync_api.Browser", reported: Path) -> Iterator[tuple[Path, "sync_api.Page"]]:
    """A report of the tiny pair, and the page that shows it."""
    with _shown(browser, reported / "report.html") as page:
        yield reported, page


def _bank(run: Path) -> pd.DataFrame:
    """The bank's positions beside their gains and ranks, in the page's order."""
    key = ["context_id", "position"]
    frame = pd.read_parquet(run / "tokens")
    for folder in ("positions", "gains/p"):
        frame = frame.merge(pd.read_parquet(run / folder).drop(columns="prompt_id"), on=key, suffixes=("", "_too"))
    return frame.sort_values(key, ignore_index=True)


def _colours(page: "sync_api.Page") -> list[list[str]]:
    return page.locator(".token").evaluate_all(
        "all => all.map(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color])"
    )


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(pair: list[str]) -> float:
    low, high = sorted(map(_luminance, pair))
    return (high + 0.05) / (low + 0.05)


def test_a_reader_with_a_mouse(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    assert page.locator("h2").all_inner_texts() == [
        *("Headline", "Primary claims", "What selectors keep", "Do the primary numbers hang on choices?"),
        *("Everything else", "Tokens"),
    ]
    assert page.locator("#more > details[open]").count() == 0
    bank = _bank(run)
    assert page.locator(".token").count() == len(bank)
    by_learnable = _colours(page)
    page.select_option("#column", label="raw KL")
    by_kl = _colours(page)
    assert by_learnable != by_kl
    page.locator(".token").nth(7).hover()
    card = page.locator("#card")
    card.wait_for(state="visible")
    row = bank.iloc[7]
    assert f"raw KL: {float(f'{row.forward_kl:.3g}'):g} nats" in card.inner_text()
    assert f"KL after the step: {float(f'{row.forward_kl_after:.3g}'):g} nats" in card.inner_text()
    shares = [float(share) for share in re.findall(r"([\d.e-]+)%", card.inner_text())]
    np.testing.assert_allclose(shares[:5], 100 * np.exp(row["teacher_topk_logp"][:5]), rtol=0.02, atol=0.06)
    np.testing.assert_allclose(shares[6:11], 100 * np.exp(row["student_topk_logp"][:5]), rtol=0.02, atol=0.06)
    np.testing.assert_allclose(shares[12:17], 100 * np.exp(row["student_topk_logp_after"]), rtol=0.02, atol=0.06)
    assert shares[17] == pytest.approx(100 * np.exp(row["student_logp_after"]), rel=0.02, abs=0.06)


def test_low_is_pale_and_every_token_can_be_read(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    learnable = _bank(run)["learnable"].to_numpy()
    for theme in ("light", "dark"):
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        for column in ("D^L learnable", "gain", "C compatibility"):
            page.select_option("#column", label=column)
            assert min(map(_contrast, _colours(page))) >= 4.5, (theme, column)
        page.evaluate("document.querySelector('#clear').click()")
        away = [_contrast([ground, background]) for background, _ in _colours(page)]
        assert away[int(learnable.argmin())] < 1.2 < 4 < away[int(learnable.argmax())]  # low is as the page is
        page.evaluate("document.querySelector('#theme').click()")


def test_filters_hide_what_does_not_match(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    bank = _bank(run)
    page.select_option("#show", "q3")
    inside = int(bank["in_q3"].sum())
    assert page.locator("#count").inner_text() == f"{inside} of {len(bank)} tokens"
    assert page.locator(".token:not(.near)").count() == inside
    contexts = bank.groupby("context_id")["in_q3"].any()
    assert page.locator(".context:visible").count() == contexts.sum()
    page.select_option("#show", "all")
    page.select_option("#selector", "forward_kl")
    page.select_option("#show", "kept")
    page.evaluate("{ const b = document.querySelector('#budget'); b.value = 90; b.dispatchEvent(new Event('input')); }")
    budget = float(page.locator("#bought").inner_text().split("%")[0]) / 100
    kept = page.locator("#count").inner_text()
    assert kept.split()[0] == str(int(np.ceil(budget * len(bank)))) == str(page.locator(".token.kept").count())
    page.evaluate("document.querySelector('#clear').click()")
    page.fill("#search", "no such text anywhere")
    assert page.locator("#count").inner_text().startswith("0 of")
    assert page.locator("#nothing").is_visible()


def test_a_range_is_brushed_and_saved_as_csv(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    bank = _bank(run)
    page.select_option("#column", label="gain")
    picture = page.locator("#histogram")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.76 * box["width"], box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.999 * box["width"], box["y"] + 10)
    page.mouse.up()
    scale = pd.read_parquet(run / "analysis/scales.parquet").query("quantity == 'gain'").iloc[0]
    bins = np.clip(np.floor((bank["gain"] - scale["low"]) / (scale["high"] - scale["low"]) * 40), 0, 39)
    inside = bank[bins >= 30]
    low, most, high = page.locator("#axis span").all_inner_texts()
    assert low.endswith(f"{float(f'{scale.low:.3g}'):g} nats")
    assert high.endswith(f"{float(f'{scale.high:.3g}'):g} nats")
    assert most == f"highest bar: {np.bincount(bins.astype(int)).max()} tokens"
    assert 0 < len(inside) < len(bank)
    assert page.locator("#count").inner_text() == f"{len(inside)} of {len(bank)} tokens"
    with page.expect_download() as download:
        page.click("#export")
    saved = pd.read_csv(download.value.path())
    assert list(zip(saved["context_id"], saved["position"], strict=True)) == list(
        zip(inside["context_id"], inside["position"], strict=True)
    )
    np.testing.assert_allclose(saved["gain"], inside["gain"], rtol=1e-3)
    assert (saved["rank_learnable"].to_numpy() == inside["rank_learnable"].to_numpy()).all()


def test_a_reader_with_a_keyboard(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    bank = _bank(run)
    page.locator("#help").focus()
    for _ in range(2):  # the first context's prompt, then its first token
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("token")
    page.keyboard.press("ArrowRight")
    where = "document.activeElement.getAttribute('aria-label')"
    assert "position 1 of context" in page.evaluate(where)
    assert page.locator("#card").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    page.select_option("#column", label="gain")
    page.locator(".token").first.focus()
    order = bank.sort_values("gain", ascending=False)
    for key, place in (("h", 0), ("n", 1), ("n", 2), ("p", 1), ("l", -1)):
        page.keyboard.press(key)
        row = order.iloc[place]
        assert f"position {row['position']} of context {row['context_id']}" in page.evaluate(where)
        assert page.locator("#place").inner_text() == f"{place % len(bank) + 1} of {len(bank)}"
    labelled = page.locator("select, input, button").evaluate_all(
        "all => all.every(e => e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())"
    )
    assert labelled


def test_contexts_are_sorted_and_the_address_reopens_the_view(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    bank = _bank(run)
    bank["off"] = 1 - bank["compatibility_k16"]
    for menu, column in (("kl", "forward_kl"), ("gain", "gain"), ("off", "off")):
        page.select_option("#sort", menu)
        means = bank.groupby("context_id")[column].mean().sort_values(ascending=False)
        headings = page.locator(".context summary").all_inner_texts()
        assert [int(re.findall(r"\d+", heading)[0]) for heading in headings] == list(means.index)
    page.select_option("#column", label="gain")
    page.select_option("#selector", "learnable")
    page.select_option("#show", "kept")
    page.check("#beside")
    assert page.locator(".pane:visible").count() == 2 * page.locator(".context:visible").count()
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('#highest').click()")
    page.wait_for_function("location.hash.includes('token=')")
    seen = page.locator("#contexts").inner_text(), page.locator("#count").inner_text(), _colours(page)
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert (page.locator("#contexts").inner_text(), page.locator("#count").inner_text(), _colours(page)) == seen
    assert page.locator("#card").is_visible()
    page.goto(address.replace("column=forward_kl", "column=nothing").replace("show=kept", "show=nothing"))
    assert page.locator("#count").inner_text() == f"{len(bank)} of {len(bank)} tokens"


def test_a_step_opens_the_card_of_its_token(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    page.set_viewport_size({"width": 1200, "height": 500})
    order = _bank(run).sort_values("gain", ascending=False)
    page.select_option("#column", label="gain")
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(200, 400)  # where the text comes to lie
    for key, place in (("h", 0), ("l", -1), ("h", 0)):
        page.locator("body").press(key)
        page.wait_for_timeout(500)  # a page that glides, or a mouse that rests, has had its say
        row = order.iloc[place]
        assert page.locator("#card").is_visible()
        assert f"position {row['position']}, context {row['context_id']}" in page.locator("#card h4").inner_text()
        card, token = (page.locator(name).bounding_box() for name in ("#card", ".token:focus"))
        assert card
        assert token
        assert card["y"] >= token["y"] + token["height"] or card["y"] + card["height"] <= token["y"]


def test_question_mark_shows_the_keys(opened: tuple[Path, "sync_api.Page"]) -> None:
    _, page = opened
    page.locator("#rising").focus()
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    assert "lowest token" in page.locator("#keys").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()
    page.locator("#search").focus()
    page.keyboard.press("?")
    assert page.locator("#keys").is_hidden()
    assert page.locator("#search").input_value() == "?"


def test_a_budget_is_told_only_of_a_selector(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    assert page.locator("#bought").inner_text() == "choose a selector"
    page.select_option("#selector", "learnable")
    kept = int(np.ceil(0.1 * len(_bank(run))))
    assert page.locator("#bought").inner_text() == f"10%: {kept} of {len(_bank(run))} positions of the bank"


def test_figures_are_large_and_open_larger(opened: tuple[Path, "sync_api.Page"]) -> None:
    _, page = opened
    page.evaluate("document.querySelectorAll('details').forEach(folded => { folded.open = true; })")
    widths = page.locator("figure img:visible").evaluate_all("all => all.map(image => image.offsetWidth)")
    assert widths
    assert min(widths) >= 560
    page.locator("figure button").first.click()
    enlarged = page.locator("dialog img:visible")
    assert enlarged.evaluate("image => image.offsetWidth") > 1000
    enlarged.click()
    assert page.locator("dialog img").count() == 0
    page.set_viewport_size({"width": 390, "height": 844})
    assert max(page.locator("figure img:visible").evaluate_all("all => all.map(i => i.offsetWidth)")) <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_sides_are_of_raw_kl_and_say_their_means(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    bank = _bank(run)
    page.check("#beside")
    assert page.locator("#column option:checked").inner_text() == "raw KL"
    means = bank.groupby("context_id")[["forward_kl", "forward_kl_after"]].mean().to_numpy().ravel()
    said = [float(re.findall(r"mean (\S+) nats", side)[0]) for side in page.locator("h5:visible").all_inner_texts()]
    np.testing.assert_allclose(said, means, rtol=6e-3)
    page.select_option("#column", label="gain")
    assert not page.is_checked("#beside")


def test_ties_go_by_raw_kl_and_are_counted(browser: "sync_api.Browser", analysed: Path, reported: Path) -> None:
    shutil.copy(reported / "report.html", analysed)
    report = analysed / "report.html"
    bank = _bank(analysed)
    held = re.sub(r'("v":\[)[^,]+', r"\g<1>1.5", report.read_text())  # every token has the first number of every other
    report.write_text(held)
    first = bank.loc[bank["forward_kl"].idxmax()]
    with _shown(browser, report) as page:
        page.locator("body").press("h")
        assert f"position {first['position']}, context {first['context_id']}" in page.locator("#card h4").inner_text()
        assert page.locator("#place").inner_text() == f"1 of {len(bank)}, {len(bank)} tie"
        assert page.locator("#high").inner_text().startswith("≥ ")


def test_a_token_that_is_not_shown_leaves_the_address(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    bank = _bank(run)
    page.select_option("#column", label="gain")
    least = bank.groupby("context_id")["gain"].max().idxmin()  # a context that has none of the greatest gains
    page.locator(".token").nth(int((bank["context_id"] == least).argmax())).focus()
    page.wait_for_function("location.hash.includes('token=')")
    hidden = page.url
    page.locator("#from").evaluate("e => { e.value = 39; e.dispatchEvent(new Event('input')); }")
    page.wait_for_function("location.hash.includes('from=39')")
    assert "token=" not in page.url
    page.locator("#help").focus()
    for _ in range(2):  # a prompt, then a token: not the one that is gone
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("token")
    page.goto("about:blank")
    page.goto(hidden + "&from=39")  # as a link of an older page
    top = page.evaluate("document.querySelector('#tokens').getBoundingClientRect().top")
    assert top < 100  # the page is not longer than that


def test_on_a_phone_nothing_is_covered(opened: tuple[Path, "sync_api.Page"]) -> None:
    _, page = opened
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".token").nth(30).focus()
    places = page.evaluate(
        "['#controls', '#card', '.token:focus'].map(s => document.querySelector(s).getBoundingClientRect())"
        ".map(box => [box.top, box.bottom])"
    )
    (bar_top, bar), (card, _), (token_top, token) = places
    assert bar_top == 0  # sticky
    assert bar <= 844 / 6
    assert page.locator(".keyboard:visible").count() == 0
    assert bar <= token_top < token <= card  # neither over the other
    page.evaluate("document.querySelector('#up').click()")
    assert page.locator("#filters").bounding_box()["y"] > 0
    assert page.locator("#show").is_visible()
    page.locator(".token").nth(30).focus()
    page.mouse.wheel(0, 3000)
    page.locator("#card").wait_for(state="hidden")
    page.set_viewport_size({"width": 1200, "height": 900})
    page.evaluate("scrollTo(0, 0)")
    page.locator(".token").nth(7).focus()
    top = "{}.getBoundingClientRect().top"
    gap = f"{top.format('card')} - {top.format('document.activeElement')}"
    before = page.evaluate(gap)
    page.evaluate("scrollBy(0, 200)")
    assert page.evaluate(gap) == pytest.approx(before, abs=1)  # the card goes where its token goes


def test_two_runs_and_a_notebook(browser: "sync_api.Browser", analysed: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(analysed, tmp_path / "other"))
    bank = _bank(analysed)
    with _shown(browser, write_side_by_side([analysed, other], ReportSettings())) as page:
        assert page.locator("#count").inner_text() == f"{2 * len(bank)} of {2 * len(bank)} tokens"
        for row in page.locator(".row").all():
            left, right = (context.bounding_box() for context in row.locator(".context").all())
            assert left
            assert right
            assert left["y"] == right["y"]
            assert left["x"] + left["width"] <= right["x"]
        page.select_option("#column", label="gain")
        page.evaluate("document.querySelector('#highest').click()")
        assert page.locator("#card h4").inner_text().endswith(", run")
    frame = tmp_path / "notebook.html"  # an output of a notebook is a page inside a page, without an address
    frame.write_text(
        f'<iframe width=900 height=700 srcdoc="{escape(tokens_page(analysed, [3]))}"></iframe>', encoding="utf-8"
    )
    with _shown(browser, frame) as page:
        inside = page.frame_locator("iframe")
        inside.locator("#column").select_option(label="gain")
        inside.locator(".token").first.focus()
        inside.locator("#card").wait_for(state="visible")
        assert inside.locator(".token").count() == (bank["context_id"] == 3).sum()

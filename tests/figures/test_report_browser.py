"""The report in a real browser: it renders, recolours, shows the right card, and a keyboard reaches everything.

The truth: the run's tables, read by pandas.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from teachdiag.figures.report.html import write_report
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


@pytest.fixture
def opened(analysed: Path, quiet: Reporter) -> Iterator[tuple[Path, "sync_api.Page"]]:
    """A report of the tiny pair, and the page that shows it; console, errors and requests are watched."""
    write_report(analysed, ReportSettings(), quiet)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
        page.goto((analysed / "report.html").as_uri())
        yield analysed, page
        assert troubles == []
        browser.close()


def _background(page: "sync_api.Page", place: int) -> str:
    return page.locator(".token").nth(place).evaluate("e => getComputedStyle(e).backgroundColor")


def test_a_reader_with_a_mouse(opened: tuple[Path, "sync_api.Page"]) -> None:
    run, page = opened
    assert page.locator("h2").all_inner_texts() == [
        *("Verdict", "What was run", "Evidence", "Placebos", "Caveats of this run's data", "Tokens")
    ]
    positions = pd.read_parquet(run / "positions")
    bank = positions[positions["split"] == "bank"].sort_values(["context_id", "position"])
    assert page.locator(".token").count() == len(bank)
    by_learnable = [_background(page, place) for place in range(10)]
    page.select_option("#column", label="raw KL")
    by_kl = [_background(page, place) for place in range(10)]
    assert by_learnable != by_kl
    assert len(set(by_kl)) > 3
    page.locator(".token").nth(7).scroll_into_view_if_needed()
    page.locator(".token").nth(7).hover()
    card = page.locator("#card")
    card.wait_for(state="visible")
    row = bank.iloc[7]
    assert f"raw KL: {float(f'{row.forward_kl:.3g}'):g} nats" in card.inner_text()
    shares = [float(share) for share in re.findall(r"([\d.e-]+)%", card.inner_text())]
    np.testing.assert_allclose(shares[:5], 100 * np.exp(row["student_topk_logp"][:5]), rtol=0.02, atol=0.06)
    np.testing.assert_allclose(shares[6:11], 100 * np.exp(row["teacher_topk_logp"][:5]), rtol=0.02, atol=0.06)
    page.select_option("#region", "0")
    h, kl = bank["student_entropy"], bank["forward_kl"]
    inside = int(((h <= h.median()) & (kl >= kl.median())).sum())
    assert page.locator("#count").inner_text() == f"{inside} of {len(bank)} tokens"
    assert page.locator(".token:not(.out)").count() == inside


def test_a_reader_with_a_keyboard(opened: tuple[Path, "sync_api.Page"]) -> None:
    _, page = opened
    page.locator("#search").focus()
    for _ in range(2):  # the first context's prompt, then its first token
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "token"
    page.keyboard.press("ArrowRight")
    assert "position 1 of context" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert page.locator("#card").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    labelled = page.locator("select, input, button").evaluate_all(
        "all => all.every(e => e.labels?.length || e.getAttribute('aria-label'))"
    )
    assert labelled


def test_search_theme_and_phone(opened: tuple[Path, "sync_api.Page"]) -> None:
    _, page = opened
    page.fill("#search", "no such text anywhere")
    assert page.locator("#count").inner_text().startswith("0 of")
    text = page.locator(".token").first.evaluate("e => e.textContent")
    page.fill("#search", text)
    if text.strip():
        assert page.locator(".token.hit").count() >= 1
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

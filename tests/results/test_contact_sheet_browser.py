"""The contact sheet in a real browser, at the width of a desk and of a phone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from clipseg_jax.core.label_images import save_image, save_labels
from clipseg_jax.results.contact_sheet import write_contact_sheet

BROWSER = shutil.which("chromium")
CLASSES = ["cow", "<img src=x onerror=alert(1)>", "dog"]


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """Image i has class 1 on i tenths, class 2 where i is even."""
    root = tmp_path_factory.mktemp("masks")
    rows = {}
    for i in range(1, 7):
        name = f"trip/{i} <b>" if i == 6 else f"photo {i}"
        labels = np.zeros((40, 50), np.uint8)
        labels[:, : 5 * i] = 1
        classes = {"background": {"share": 1 - i / 10, "score": 0.9}}
        classes["cow"] = {"share": i / 10, "score": 0.1 * i}
        if i % 2 == 0:
            classes[CLASSES[1]] = {"share": 0.05, "score": 0.5}
        save_image(root / f"{name}.jpg", np.full((40, 50, 3), 99, np.uint8))
        save_labels(root / f"{name}.png", labels)
        row = {"image": str(root / f"{name}.jpg"), "mask": f"{name}.png", "bytes": 1}
        rows[name] = {**row, "modified_ns": 1, "classes": classes}
    assert write_contact_sheet(root, rows, CLASSES)
    return root / "index.html"


@pytest.fixture(params=[1280, 390], ids=["desk", "phone"])
def page(browser, sheet, request):
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: said.append(sent.url) if sent.url[:4] == "http" else None)
    page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
    page.goto(sheet.as_uri())
    yield page
    assert said == []
    page.close()


def names(page):
    return [each.text_content() for each in page.locator("#grid a").all()]


def test_what_is_shown(page):
    assert names(page) == [*(f"photo {i}" for i in range(1, 6)), "trip/6 <b>"]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#legend button").all_inner_texts() == [
        "cow 6", f"{CLASSES[1]} 3", "dog 0",
    ]  # fmt: skip
    assert page.locator(".figures").nth(1).text_content() == f"cow 20\xa0%, {CLASSES[1]} 5.0\xa0%"
    page.wait_for_function(
        "[...document.querySelectorAll('li:first-child img')]"
        ".every(image => image.complete && image.naturalWidth === 50)"
    )


def test_search_filter_and_sorting(page):
    page.fill("#search", "PHOTO")
    assert len(names(page)) == 5
    page.locator("#legend button").nth(1).click()
    assert names(page) == ["photo 2", "photo 4"]
    assert page.inner_text("#count") == "2 of 6 shown"
    assert page.locator(".figures").first.text_content() == f"{CLASSES[1]} 5.0\xa0%, score 0.50"
    page.select_option("#sort", "share")
    page.fill("#search", "")
    page.locator("#legend button").nth(0).click()
    assert names(page)[:2] == ["trip/6 <b>", "photo 5"]
    page.select_option("#sort", "score")
    assert names(page)[:2] == ["photo 1", "photo 2"]
    page.locator("#legend button").nth(0).click()  # once more: all again
    assert page.inner_text("#count") == "6 of 6 shown"


def test_by_keys_alone(page):
    """A picture without its mask, and the legend."""
    page.focus(".picture")
    opacity = "element => getComputedStyle(element).opacity"
    mask = page.locator(".mask").first
    assert mask.evaluate(opacity) == "0.6"
    page.keyboard.press("Enter")
    assert mask.evaluate(opacity) == "0"
    page.keyboard.press("Space")
    assert mask.evaluate(opacity) == "0.6"
    page.focus("#opacity")
    page.keyboard.press("Home")
    assert mask.evaluate(opacity) == "0"
    page.focus("#legend button:nth-child(3)")
    page.keyboard.press("Enter")
    assert names(page) == []


def test_names_open_the_mask(page, sheet):
    page.locator("#grid a").last.click()
    assert page.url == (sheet.parent / "trip/6 <b>.png").as_uri()

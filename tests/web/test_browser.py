"""The page in a real browser, as visitors use it, and as they misuse it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.core.label_images import palette
from clipseg_jax.demo import world
from configs import demo_maskclip
from tests import folders
from tests.web.served import Served, Visitor

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
REQUIRED = os.environ.get("CLIPSEG_JAX_BROWSER") == "required"
WAIT_MS = 60_000


def absent() -> str:
    """Why there is no browser; empty if there is one."""
    try:
        import gradio  # noqa: F401
        import playwright  # noqa: F401
    except ImportError as error:
        return str(error)
    return "" if Path(CHROMIUM).exists() else f"no {CHROMIUM}"


if absent() and not REQUIRED:
    pytest.skip(f"needs a browser: {absent()}", allow_module_level=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    config = demo_maskclip.get_config()
    config.dataset.name, config.stages = "folder", ("data", "text")
    config.dataset.root = str(folders.write_painted(tmp_path_factory.mktemp("world"), 2, 1))
    main.run(config, models / "my <b>maskclip")
    temporary = tmp_path_factory.mktemp("temporary")
    server = Served(temporary, "--model", "demo", "--models", str(models))
    yield server
    assert server.stop(signal.SIGTERM) == 143
    assert server.files() == []
    assert "Traceback" not in server.output
    assert [each for each in server.connections if "127.0.0.1" not in each] == []


@pytest.fixture(scope="module")
def browser():
    assert not absent(), absent()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        # Names are not looked up: a request to another host fails at once.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page in a tab of its own; afterwards nothing went wrong in it but `errors`."""
    tabs, wrong = [], []

    def note_request(request):
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != urlsplit(served.url).netloc:
            wrong.append(f"request to {request.url}")

    def open_page(width=1280, height=900, errors=(), **options):
        def note_message(message):
            if message.type == "error" and not any(each in message.text for each in errors):
                wrong.append(f"console: {message.text} {message.location}")

        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(WAIT_MS)
        tab = context.new_page()
        tab.on("request", note_request)
        tab.on("console", note_message)
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.goto(served.url)
        tab.wait_for_selector("#photo img")
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        tab.context.close()
    assert wrong == []


def segment(tab):
    tab.click("#go")
    tab.wait_for_selector("#legend .legend")


def drop(tab, path):
    """Gives the page a file, as a visitor who drops it."""
    if tab.query_selector("#photo input[type=file]") is None:
        tab.click("#photo button[aria-label='Clear'], #photo button[title='Clear']")
    tab.wait_for_selector("#photo input[type=file]", state="attached")
    tab.set_input_files("#photo input[type=file]", str(path))


def told(tab):
    """The message in the corner; it is closed."""
    text = tab.wait_for_selector("[data-testid=toast-text]").inner_text()
    tab.click("[data-testid=toast-close]")
    tab.wait_for_selector("[data-testid=toast-text]", state="detached")
    return text


def legend(tab):
    """Class -> share in percent, as the legend says; classes that are not there have 0."""
    rows = tab.query_selector_all("#legend .legend button")
    found = {}
    for row in rows:
        share = row.query_selector(".share").inner_text()
        found[row.query_selector(".name").inner_text()] = float(share.strip("<%"))
    return found


def picture(tab, element):
    """Pixels (h, w, 3) of the image that an element shows, in its own size."""
    image = tab.query_selector(f"#{element} img")
    answer = tab.request.get(image.evaluate("image => image.src"))
    assert answer.ok
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))


def changed(tab, element, before):
    """The address of an element's image, once it is another one than `before`."""
    script = """([id, before]) => {
      const image = document.querySelector(`#${id} img`);
      return image && image.src !== before && image.src;
    }"""
    return tab.wait_for_function(script, arg=[element, before]).json_value()


def source(tab, element):
    return tab.evaluate("id => document.querySelector(`#${id} img`).src", element)


def test_from_a_sample_to_the_downloads(visit, served, tmp_path):
    tab = visit(accept_downloads=True)
    tab.click("#samples button >> nth=5")  # a duck, a fish and a cow
    tab.wait_for_selector("#legend .legend")
    assert {"duck", "fish", "cow"} <= legend(tab).keys()
    passes = served.passes

    # The threshold, the opacity, heat maps and downloads need no network.
    shown = source(tab, "overlay")
    before = legend(tab)["background"]
    tab.fill("#threshold input[type=number]", "0.9")
    tab.press("#threshold input[type=number]", "Enter")
    shown = changed(tab, "overlay", shown)
    tab.wait_for_function("() => document.querySelector('#legend')")
    assert legend(tab)["background"] > before
    tab.fill("#opacity input[type=number]", "1")
    tab.press("#opacity input[type=number]", "Enter")
    changed(tab, "overlay", shown)
    colours = picture(tab, "overlay").reshape(-1, 3).astype(int)
    cow = palette()[1 + world.CLASSES.index("cow")].astype(int)
    assert (np.abs(colours - cow).max(axis=1) < 12).mean() > 0.02

    tab.click("#legend button:has(.name:text-is('duck'))")
    tab.wait_for_selector("#heat img:visible")
    tab.wait_for_selector("#caption b:text-is('duck')")
    assert tab.get_attribute("#legend button:has(.name:text-is('duck'))", "aria-pressed") == "true"
    first = source(tab, "heat")
    tab.click("#legend .absent button >> nth=0")
    changed(tab, "heat", first)

    tab.click("button[role=tab]:has-text('Before')")
    tab.wait_for_selector("#compare img:visible")
    assert len(tab.query_selector_all("#compare img")) == 2

    with tab.expect_download() as waiting:
        tab.click("#save_mask")
    mask = Image.open(waiting.value.path())
    assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (256, 256))
    assert np.array_equal(np.array(mask.getpalette("RGB")).reshape(-1, 3)[:13], palette(13))
    labels = np.asarray(mask)
    with tab.expect_download() as waiting:
        tab.click("#save_json")
    about = json.loads(Path(waiting.value.path()).read_text())
    assert about["settings"] == {
        "model": "demo",
        "method": "naclip",
        "refine": "auto",
        "words": list(world.CLASSES),
        "background_words": list(world.SCENERY),
        "background_threshold": 0.9,
    }
    names = [each["name"] for each in about["classes"]]
    assert names == ["background", *world.CLASSES]
    for each in about["classes"]:
        assert each["share"] == pytest.approx((labels == each["label"]).mean(), abs=1e-4)
    truth = world.make("evaluation", 5, 256).label
    inside = (labels > 0) & (truth < world.BOUNDARY)
    assert (labels[inside] == truth[inside]).mean() > 0.9
    assert served.passes == passes


def test_an_own_photo_own_words_another_refinement(visit, served, tmp_path):
    Image.fromarray(world.make("evaluation", 28, 200).image).save(tmp_path / "my boat.jpg")
    tab = visit()
    drop(tab, tmp_path / "my boat.jpg")
    tab.wait_for_selector("#said:has-text('my boat.jpg, 200 x 200 pixels')")
    assert picture(tab, "photo").shape == (600, 600, 3)
    assert not tab.is_visible("#overlay")
    tab.fill("#words textarea", "boat, ${6 * 7} {{fish}} <b>")
    segment(tab)
    names = [each.inner_text() for each in tab.query_selector_all("#legend .name")]
    assert "${6 * 7} {{fish}} <b>" in names
    passes, shown = served.passes, source(tab, "overlay")
    tab.click("#refine label:has-text('CRF')")
    tab.click("#go")
    changed(tab, "overlay", shown)
    assert served.passes == passes + 1
    assert "crf" in served.output.splitlines()[-1]

    # A click into the water shows the heat map of the background.
    side = tab.query_selector("#overlay img").bounding_box()["width"]
    tab.click("#overlay img", position={"x": 0.5 * side, "y": 0.95 * side})
    tab.wait_for_selector("#caption b:text-is('background')")

    tab.fill("#words textarea", "")
    tab.click("#go")
    assert "at least one word" in told(tab)
    assert served.passes == passes + 1


def test_a_trained_model_has_its_own_classes(visit, served):
    tab = visit()
    choose(tab, "model", "my <b>maskclip")
    tab.wait_for_selector("#about:has-text('trained for these classes')")
    assert tab.input_value("#words textarea") == ", ".join(world.CLASSES)
    assert tab.is_disabled("#words textarea")
    assert not tab.is_visible("#background")
    assert not tab.is_visible("#method")
    segment(tab)
    assert {"boat", "fish"} <= legend(tab).keys()
    assert served.output.splitlines()[-1].startswith("pass: my <b>maskclip, its own")
    shown = source(tab, "overlay")
    tab.click("#samples button >> nth=7")  # geese, whose words are others
    changed(tab, "overlay", shown)
    assert tab.input_value("#words textarea") == ", ".join(world.CLASSES)
    choose(tab, "model", "demo")
    tab.wait_for_selector("#about:has-text('painted toys')")
    assert tab.is_enabled("#words textarea")
    choose(tab, "method", "maskclip")
    segment(tab)
    tab.wait_for_selector("#said:has-text('demo: ')")
    assert served.output.splitlines()[-1].startswith("pass: demo, maskclip, auto")


def choose(tab, name, value):
    if not tab.is_visible("#model"):
        tab.click("button:has-text('Model, read-out')")
    tab.click(f"#{name} input")
    tab.click(f"#{name} [role=option]:has-text('{value}')")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(visit, width):
    tab = visit(width=width, height=844)
    segment(tab)
    for view in ("Heat", "Before", "Mask"):
        tab.click(f"button[role=tab]:has-text('{view}')")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = {
        name: tab.query_selector(f"#{name}").bounding_box()
        for name in ("photo", "words", "go", "legend", "threshold", "save_mask")
    }
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes.values())
    below = boxes["legend"]["y"] > boxes["go"]["y"]
    assert below == (width == 390)  # one column
    assert not tab.is_visible("#mask_file")


def test_files_that_are_no_photos(visit, served, tmp_path):
    (tmp_path / "notes.jpg").write_text("not a photo")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    whole = io.BytesIO()
    Image.fromarray(world.make("evaluation", 9, 200).image).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:3000])
    (tmp_path / "header.png").write_bytes(png(60_000, 60_000, b""))
    (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000, bytes(30_000 * 3751)))
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    tab = visit()
    expected = {
        "notes.jpg": "notes.jpg is not an image that can be read here",
        "drawing.svg": "drawing.svg is not an image that can be read here",
        "cut.jpg": "cut.jpg is damaged",
        "header.png": "header.png has more than the 100 megapixels",
        "bomb.png": "bomb.png has more than the 100 megapixels",
    }
    before = served.memory("VmRSS")
    for name, message in expected.items():
        drop(tab, tmp_path / name)
        assert message in told(tab)
        tab.wait_for_selector("#photo input[type=file]", state="attached")  # an empty box again
    assert served.memory("VmRSS") - before < 200e6
    # None is left behind, and the page works.
    assert within(30, lambda: not any(path.name in expected for path in served.files()))
    tab.click("#samples button >> nth=0")
    tab.wait_for_selector("#legend .legend")


def png(width, height, raw):
    """A grey PNG of 1 bit whose rows are `raw`, with their filter bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(raw, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_a_photo_of_sixty_megapixels(visit, served, tmp_path):
    small = Image.fromarray(world.make("evaluation", 28, 512).image)
    small.resize((10_000, 6_000)).save(tmp_path / "huge.jpg", quality=80)
    tab = visit(accept_downloads=True)
    before = served.memory("VmRSS")
    drop(tab, tmp_path / "huge.jpg")
    tab.wait_for_selector("#said:has-text('10000 x 6000 pixels, worked on at 1024 x 614')")
    segment(tab)
    assert "boat" in legend(tab)
    assert picture(tab, "overlay").shape == (614, 1024, 3)
    with tab.expect_download() as waiting:
        tab.click("#save_mask")
    assert Image.open(waiting.value.path()).size == (10_000, 6_000)
    assert served.memory("VmHWM") - before < 1.5e9
    assert served.memory("VmRSS") - before < 0.8e9


def test_twenty_visitors_at_once(served):
    before = served.memory("VmRSS")
    passes = served.passes

    def visit(number):
        visitor = Visitor(served.url, f"visitor{number}")
        visitor.run_at_once(visitor.event(None, "load"), [])
        words, background = ", ".join(world.CLASSES[: 3 + number % 2]), "water, sky"
        data = [words, background, "demo", "naclip", "pamr", 0, 0.6]
        return visitor.run(visitor.event("go", "click"), data)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, range(20)))
    assert all(answer["success"] for answer in answers)
    assert served.passes == passes + 20
    assert served.memory("VmRSS") - before < 0.5e9


def test_a_full_queue_says_so(visit, served):
    tab = visit(errors=["503"])
    visitor = Visitor(served.url, "impatient")
    visitor.run_at_once(visitor.event(None, "load"), [])
    data = ["cow, duck", "water", "demo", "naclip", "pamr", 0, 0.6]
    answers, enough = [], threading.Event()

    def insist(_):
        while not enough.is_set():
            answers.append(visitor.send(visitor.event("go", "click"), data))

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(insist, number)
        try:
            while 503 not in {status for status, _ in answers}:
                time.sleep(0.01)
            tab.click("#go")
            message = told(tab)
        finally:
            enough.set()
    assert message == "This application is currently busy. Please try again."
    refused = [text for status, text in answers if status == 503]
    assert all("Queue is full. Max size is 40" in text for text in refused)
    # What had been let in is worked off, and the page works.
    while visitor.get("/gradio_api/queue/status").count('"queue_size":0') == 0:
        time.sleep(0.1)
    segment(tab)


def test_files_go_with_their_visitor(visit, served):
    before = {*served.files()}

    def own():
        return {*served.files()} - before

    tab = visit()
    segment(tab)
    assert within(30, lambda: len(own()) == 3)  # the photo, the overlay, a heat map
    for value in range(12):
        shown = source(tab, "overlay")
        tab.fill("#opacity input[type=number]", str(value / 20))
        tab.press("#opacity input[type=number]", "Enter")
        changed(tab, "overlay", shown)
    assert within(30, lambda: len(own()) == 5)  # the last overlays
    tab.goto("about:blank")
    assert within(30, lambda: not own())


def within(seconds, condition):
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()

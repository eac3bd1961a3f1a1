"""The page of the web demo in headless Chromium: with the mouse, with the keyboard, with good and with bad photos."""

import re
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium, contrast, visits
from demo_server import EMBEDDED, HUB_MODEL, MARKUP, cache_of, running, running_with_second
from pictures import encode, on_its_side, png_16_bit
from PIL import Image
from playwright.sync_api import expect

import mobilevit_hub as mh

pytestmark = [pytest.mark.parity, pytest.mark.export]
PHOTOS = Path(__file__).parents[1] / "spaces" / "examples"
BUS, CAT = PHOTOS / "school_bus.jpg", PHOTOS / "chelsea_cat.jpg"
SECONDS = 300_000  # milliseconds; a page on a busy machine takes its time


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with running_with_second(tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(demo, browser):
    with visits(browser, demo.url, SECONDS) as open_address:

        def open_page(*size):
            page = open_address(*size)
            for part in ("#answer .empty", "#examples img", "#runtimes input"):  # the page is complete, in steps
                page.wait_for_selector(part)
            page.wait_for_function("[...document.images].every(image => image.complete)")
            return page

        yield open_page


def choose(page, file, name="photo.jpg"):
    """Chooses a photo, after taking away the one that is there."""
    clear = page.get_by_role("button", name=re.compile("clear|remove", re.I))
    if page.locator("#photo img").count() and clear.count():
        clear.first.click()
        expect(page.locator("#answer .empty")).to_be_visible(timeout=SECONDS)
    payload = str(file) if isinstance(file, Path) else {"name": name, "mimeType": "image/png", "buffer": file}
    page.set_input_files("#photo input[type=file]", payload)


def first_label(page, runtime="pt"):
    """The best label that a card shows, once it does."""
    return page.locator(f"[data-runtime={runtime}] li").first.get_attribute("data-label")


def test_a_photo_gets_labels_bars_and_times(visit):
    page = visit()
    choose(page, BUS)
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    for runtime in ("pt", "tf", "tflite-fp32", "tflite-int8"):
        card = page.locator(f"[data-runtime={runtime}]")
        bars = card.locator("li")
        assert bars.count() == 5 and bars.first.get_attribute("data-label") == "school bus"
        scores = [float(bar.get_attribute("data-score")) for bar in bars.all()]
        widths = [bar.locator("i").evaluate("e => e.getBoundingClientRect().width") for bar in bars.all()]
        assert scores == sorted(scores, reverse=True) and widths[0] > 20 * widths[4]
        assert float(card.locator("[data-ms]").get_attribute("data-ms")) > 0
        assert re.search(r"[\d.]+ ms · [\d.]+ MB", card.inner_text())
    expected = mh.predict(BUS, EMBEDDED)[0]["predictions"]
    for bar, prediction in zip(page.locator("[data-runtime=pt] li").all(), expected, strict=True):
        assert float(bar.get_attribute("data-score")) == pytest.approx(prediction["score"], abs=2e-6)
    assert float(page.locator("[data-runtime=tf]").get_attribute("data-difference")) < 1e-5
    assert "school bus, say all four" in page.locator(".verdict").inner_text()
    picture = page.locator("#look img")
    assert picture.evaluate("e => e.naturalWidth") == 448
    with page.expect_download() as download:
        page.get_by_role("link", name="int8-dynamic.tflite").click()
    assert Path(download.value.path()).read_bytes()[4:8] == b"TFL3"


def test_switching_runtime_model_and_stage(visit, demo):
    page, second = visit(), demo.second
    choose(page, CAT)
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    for name in ("Keras", "TFLite fp32", "PyTorch"):
        page.get_by_label(name, exact=True).uncheck()
    expect(page.locator(".card")).to_have_count(1, timeout=SECONDS)
    assert page.locator(".card").get_attribute("data-runtime") == "tflite-int8"
    before = page.locator("#look img").get_attribute("src")
    page.get_by_label("2", exact=True).check()
    expect(page.locator("#look figcaption")).to_contain_text("after stage 2", timeout=SECONDS)
    assert page.locator("#look img").get_attribute("src") != before
    page.get_by_label("PyTorch", exact=True).check()
    expect(page.locator(".card")).to_have_count(2, timeout=SECONDS)
    pick_model(page, str(second))
    expected = [p["label"] for p in mh.predict(CAT, second)[0]["predictions"]]
    expect(page.locator("[data-runtime=pt] li").first).to_have_attribute("data-label", expected[0], timeout=2 * SECONDS)
    assert [bar.get_attribute("data-label") for bar in page.locator("[data-runtime=pt] li").all()] == expected
    assert page.locator("[data-runtime=pt]").inner_text().count(MARKUP) == 5  # as text, and `visit` saw no dialog


def pick_model(page, name):
    box = page.get_by_label("Model")
    box.click()
    page.get_by_role("option", name=name, exact=True).click()


def test_a_model_of_the_hub_without_a_network_says_so_and_the_next_model_works(visit):
    page = visit()
    choose(page, CAT)
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    pick_model(page, HUB_MODEL)
    expect(page.get_by_role("alert").filter(has_text=HUB_MODEL)).to_be_visible(timeout=2 * SECONDS)
    pick_model(page, EMBEDDED)
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)


BAD = {
    "broken": (CAT.read_bytes()[:5000], "cut short or damaged"),
    "huge": (encode(Image.new("1", (10000, 6000)), "PNG"), "60 million pixels; the limit is 25 million"),
    "text": (b"hello", "not an image that can be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_photo_gets_a_message_which_a_good_one_clears(visit, kind):
    content, message = BAD[kind]
    page = visit()
    choose(page, content, f"{kind}.png")
    expect(page.locator("#answer [role=alert]")).to_contain_text(message, timeout=SECONDS)
    assert page.locator(".card").count() == 0
    choose(page, BUS)
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    assert page.locator("#answer [role=alert]").count() == 0


def test_a_16_bit_photo_is_read_as_the_library_reads_it(visit):
    values = np.asarray(Image.open(CAT).convert("L")).astype(np.uint16) * 257
    content = png_16_bit(values, 0)
    page = visit()
    choose(page, content, "grey.png")
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    assert first_label(page) == mh.predict(content, EMBEDDED)[0]["predictions"][0]["label"]


def test_a_rotated_photo_is_turned_upright(visit):
    page = visit()
    choose(page, on_its_side(BUS), "rotated.jpg")
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    assert first_label(page) == "school bus"
    width, height = page.locator("#photo img").evaluate("e => [e.naturalWidth, e.naturalHeight]")
    assert width > height


def test_too_large_a_file_is_refused_with_its_limit(visit):
    page = visit()
    choose(page, encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)), "PNG"))
    expect(page.get_by_text(re.compile("10.?MB|10000000|too large|exceed", re.I)).first).to_be_visible(timeout=SECONDS)


def test_everything_works_with_the_keyboard(visit):
    page = visit()

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#photo")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(BUS))
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    page.locator("body").evaluate("e => document.activeElement.blur()")
    tab_to("#examples")
    page.keyboard.press("Enter")
    label = mh.predict(CAT, EMBEDDED)[0]["predictions"][0]["label"]
    expect(page.locator("[data-runtime=pt] li").first).to_have_attribute("data-label", label, timeout=SECONDS)
    tab_to("#runtimes")
    page.keyboard.press("Space")
    expect(page.locator(".card")).to_have_count(3, timeout=SECONDS)


def test_a_photo_can_be_dropped(visit):
    page = visit()
    page.evaluate(
        """async bytes => {
            const file = new File([new Uint8Array(bytes)], 'pasted.jpg', {type: 'image/jpeg'});
            const data = new DataTransfer();
            data.items.add(file);
            const drop = document.querySelector('#photo button, #photo [role=button]');
            for (const kind of ['dragenter', 'dragover', 'drop'])
                drop.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        list(BUS.read_bytes()),
    )
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    assert first_label(page) == "school bus"


def test_the_about_tab_has_licence_and_papers(visit):
    page = visit()
    page.get_by_role("tab", name="About").click()
    about = page.locator("#about")
    expect(about).to_contain_text("licence of the weights", timeout=SECONDS)
    for text in (EMBEDDED, "2110.02178", "2206.02680", "CC BY 2.0"):
        expect(about).to_contain_text(text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_read_on_a_phone_and_on_a_desktop(visit, tmp_path, width, scheme):
    page = visit(width, 844, scheme)
    choose(page, BUS)
    expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
    page.screenshot(path=tmp_path / f"demo-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, surface = page.evaluate(
        """() => { const card = getComputedStyle(document.querySelector('.card'));
                   return [card.color, card.backgroundColor]; }"""
    )
    assert contrast(ink, surface) >= 7
    muted = page.evaluate("getComputedStyle(document.querySelector('.card footer')).color")
    assert contrast(muted, surface) >= 4.5
    places = {name: page.locator(name).bounding_box() for name in ("#photo", "#answer", "#look", "#downloads")}
    if width == 390:  # one column, the answer before the picture of what it looks at
        assert places["#photo"]["y"] < places["#answer"]["y"] < places["#look"]["y"] < places["#downloads"]["y"]
    else:
        assert places["#photo"]["x"] + places["#photo"]["width"] <= places["#answer"]["x"]


def test_a_server_that_is_gone_is_noticed(browser, tmp_path_factory):
    with running(cache=cache_of(tmp_path_factory)) as server:
        page = browser.new_page()
        page.goto(server.url)
        choose(page, BUS)
        expect(page.locator(".card")).to_have_count(4, timeout=SECONDS)
        server.process.kill()
        server.process.wait(600)
        page.locator("#classify").click()
        expect(page.get_by_text(re.compile("connection", re.I)).first).to_be_visible(timeout=SECONDS)
        page.close()

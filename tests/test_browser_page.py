"""The page that runs a .tflite file in the browser, in headless Chromium, against `mobilevit_hub.tflite` in Python."""

import base64
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium, contrast, visits
from pictures import encode, noise, on_its_side, oriented, smooth
from PIL import Image
from playwright.sync_api import expect

from mobilevit_hub.tflite import model as tflite
from mobilevit_hub.tflite.files import FILTERS, LABELS, RECORD

pytestmark = pytest.mark.export
NPM = shutil.which("npm")
if NPM is None:
    pytest.skip("needs npm", allow_module_level=True)

ROOT = Path(__file__).parents[1]
BROWSER, PHOTOS = ROOT / "spaces" / "browser", ROOT / "examples" / "photos"
EMBEDDED = "mobilevit-xxs-tiny-imagenet"
PRECISIONS = ("int8-dynamic", "fp32")
EXAMPLES = ("chelsea_cat.jpg", "espresso.jpg", "pizza.jpg", "school_bus.jpg")
BUS = PHOTOS / "school_bus.jpg"
COLOURS = BROWSER.parent / "common.css"
SECONDS = 300_000  # milliseconds; a page on a busy machine takes its time
expect.set_options(timeout=SECONDS)
PATH = "/below/another/address/"


# --- The page, built and served -------------------------------------------------------------------------------------


def newest(*paths):
    """When these files, or something in these folders, were changed last; not what is installed or built there."""
    skipped = {"node_modules", "dist", "public"}
    files = [
        file
        for path in paths
        for file in (path, *path.rglob("*"))
        if file.is_file() and not skipped & set(file.relative_to(path).parts)
    ]
    return max(file.stat().st_mtime for file in files)


@pytest.fixture(scope="session")
def models():
    """The two files that the page comes with."""
    from mobilevit_hub.conversion import export_tflite

    files = {p: BROWSER / "public" / "models" / f"{EMBEDDED}-{p}.tflite" for p in PRECISIONS}
    for precision, file in files.items():
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            export_tflite(EMBEDDED, file, precision=precision)
    return files


@pytest.fixture(scope="session")
def dist(models):
    """The built page."""
    built = BROWSER / "dist" / "index.html"
    if not built.exists() or built.stat().st_mtime < newest(BROWSER, PHOTOS, COLOURS, *models.values()):
        commands = [["run", "build"]] if (BROWSER / "node_modules").exists() else [["ci"], ["run", "build"]]
        for command in commands:
            done = subprocess.run([NPM, *command], cwd=BROWSER, capture_output=True, text=True, check=False)
            if command == ["ci"] and done.returncode and "EUSAGE" not in done.stderr:
                pytest.skip(f"npm ci failed, which needs a network: {done.stderr[-300:]}")
            assert done.returncode == 0, done.stderr
    return built.parent


class Host(http.server.SimpleHTTPRequestHandler):
    """A static host that sends no header of its own and has the page below some address."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm"}

    def translate_path(self, path):
        return super().translate_path(path.removeprefix(PATH.rstrip("/")) if path.startswith(PATH) else "/nothing")

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):  # the page was closed
            super().copyfile(source, outputfile)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def address(dist):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Host, directory=dist)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{PATH}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(address, browser):
    with visits(browser, address, SECONDS) as open_page:
        yield open_page


# --- What a visitor does --------------------------------------------------------------------------------------------


def payload(file, name="photo.png"):
    return str(file) if isinstance(file, Path) else {"name": name, "mimeType": "", "buffer": file}


def give(page, selector, file, name="photo.png"):
    """Gives a file to the page, and waits until it has something to say about it."""
    page.evaluate("document.querySelector('#ms').dataset.ms = document.querySelector('#problem').textContent = ''")
    page.set_input_files(selector, payload(file, name))
    page.wait_for_selector("#ms[data-ms]:not([data-ms='']), #problem:not(:empty)", state="attached")


def choose(page, file, name="photo.png"):
    give(page, "#photo-file", file, name)


def open_file(page, file, name="own.tflite"):
    give(page, "#model-file", file, name)


def radio(page, name):
    """The choice of a model."""
    return page.get_by_role("radio", name=name)


def labels_of(page):
    """Labels and scores, the best first."""
    return {b.get_attribute("data-label"): float(b.get_attribute("data-score")) for b in page.locator("#bars li").all()}


def input_of(page):
    """The pixels that the network got."""
    values = page.evaluate(
        """() => { const canvas = document.querySelector('#input');
                   return [canvas.height, canvas.width,
                           [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]]; }"""
    )
    return np.array(values[2], np.uint8).reshape(*values[:2], 4)[..., :3]


def message(page):
    return page.locator("[role=alert]").inner_text()


# --- The same answers as in Python ----------------------------------------------------------------------------------


def transparent():
    """The bus, fading out to the right."""
    picture = Image.open(BUS).convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(255, 0, picture.width).astype(np.uint8), (picture.height, 1))))
    return encode(picture, "PNG")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_answers_are_those_of_python(visit, models, precision):
    page, model = visit(), tflite.Model(models[precision])
    radio(page, precision).check()
    photos = {name: PHOTOS / name for name in EXAMPLES} | {"rotated": on_its_side(BUS), "transparent": transparent()}
    largest = 0.0
    for name, photo in photos.items():
        choose(page, photo, name)
        expected = model(photo if isinstance(photo, bytes) else str(photo), top_k=len(model.labels))
        found = labels_of(page)
        assert len(found) == 5 and next(iter(found)) == expected[0]["label"], name
        scores = {prediction["label"]: prediction["score"] for prediction in expected}
        largest = max(largest, *(abs(score - scores[label]) for label, score in found.items()))
    assert largest < 0.01
    assert 0 < float(page.locator("#ms").get_attribute("data-ms")) < 1000
    assert float(page.locator("#prepare-ms").get_attribute("data-ms")) > 0
    assert page.locator("#bytes").inner_text() == f"{models[precision].stat().st_size / 1e6:.1f} MB"


def changed(file, preprocessing=None, labels=None, **record):
    """A file whose record or labels say something else."""
    content = file.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        attached = {LABELS: archive.read(LABELS).decode(), RECORD: json.loads(archive.read(RECORD))}
        end = min(entry.header_offset for entry in archive.infolist())
    attached[LABELS] = labels(attached[LABELS]) if labels else attached[LABELS]
    attached[RECORD].update(record)
    attached[RECORD]["preprocessing"].update(preprocessing or {})
    result = io.BytesIO(content[:end])
    with zipfile.ZipFile(result, "a") as archive:
        archive.writestr(LABELS, attached[LABELS])
        archive.writestr(RECORD, json.dumps(attached[RECORD]))
    return result.getvalue()


def python_input(path, content, picture):
    """What the network gets in Python."""
    path.write_bytes(content)
    with warnings.catch_warnings(action="ignore"):
        return tflite.Model(path).prepare(picture)[0]


SMALL, ODD, TALL = noise(47, 61), noise(133, 201), noise(301, 99)
RESIZES = {
    "shrunk": [({"interpolation": name}, ODD) for name in ("bilinear", "bicubic")],
    "enlarged": [({"interpolation": name}, SMALL) for name in ("bilinear", "bicubic")],
    "cropped, with a border, squeezed": [
        ({"interpolation": "bicubic", "resize": {"shortest_edge": 109}}, TALL),
        ({"interpolation": "bilinear", "resize": {"shortest_edge": 61}}, ODD),
        ({"interpolation": "bicubic", "resize": {"height": 101, "width": 70}}, TALL),
    ],
    "every filter": [({"interpolation": name}, picture) for name in FILTERS for picture in (SMALL, ODD)],
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if "every" in kind else kind for kind in RESIZES]
)
def test_the_network_gets_the_same_bytes_as_in_python(visit, models, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tflite, "try_in_process", lambda *_: None)  # takes a second each time
    page = visit()
    for preprocessing, picture in RESIZES[kind]:
        content, photo = changed(models["int8-dynamic"], preprocessing), encode(picture, "PNG")
        expected = python_input(tmp_path / "changed.tflite", content, photo)
        page.set_input_files("#model-file", payload(content, "own.tflite"))
        choose(page, photo)
        np.testing.assert_array_equal(input_of(page), expected, str(preprocessing))


def test_a_photo_larger_than_a_strip_gets_the_same_bytes_as_in_python(visit, models):
    photo = encode(smooth(2501, 3001), "PNG", compress_level=1)
    page = visit()
    choose(page, photo)
    np.testing.assert_array_equal(input_of(page), tflite.Model(models["int8-dynamic"]).prepare(photo)[0])


def test_photos_are_turned_upright(visit, models):
    page, model = visit(), tflite.Model(models["int8-dynamic"])
    for orientation in (3, 5, 6, 8):
        photo = oriented(orientation, "PNG")
        choose(page, photo)
        np.testing.assert_array_equal(input_of(page), model.prepare(photo)[0], str(orientation))


@pytest.mark.slow
def test_float_input_and_logits_give_the_answers_of_python(visit, tmp_path):
    from mobilevit_hub.conversion import export_tflite

    file = tmp_path / "float.tflite"
    export_tflite(EMBEDDED, file, input_type="float32", output_type="logits")
    page, model = visit(), tflite.Model(file)
    page.set_input_files("#model-file", str(file))
    choose(page, BUS)
    expected = model(str(BUS))
    assert list(labels_of(page)) == [prediction["label"] for prediction in expected]
    assert list(labels_of(page).values()) == pytest.approx([p["score"] for p in expected], abs=0.01)


def test_a_browser_without_relaxed_simd_gets_the_other_build(visit, models):
    # The probe is a module of some bytes.
    page = visit(
        script="""const {instantiate, validate, compile} = WebAssembly;
        const is = bytes => (bytes.byteLength ?? 0) > 0 && bytes.byteLength < 500;
        WebAssembly.instantiate = (bytes, ...rest) =>
            is(bytes) ? Promise.reject(new WebAssembly.CompileError('no')) : instantiate(bytes, ...rest);
        WebAssembly.compile = bytes => is(bytes) ? Promise.reject(new WebAssembly.CompileError('no')) : compile(bytes);
        WebAssembly.validate = bytes => !is(bytes) && validate(bytes);"""
    )
    choose(page, BUS)
    assert page.evaluate("performance.getEntriesByType('resource').some(e => e.name.includes('compat'))")
    expected = tflite.Model(models["int8-dynamic"])(str(BUS))[0]
    assert next(iter(labels_of(page).items())) == (expected["label"], pytest.approx(expected["score"], abs=0.01))


# --- What is wrong is said ------------------------------------------------------------------------------------------

BAD_PHOTOS = {
    "cut.jpg": (BUS.read_bytes()[:20_000], "cut short or damaged"),
    "cut.png": (encode(noise(), "PNG")[:5000], "cut short or damaged"),
    "text.jpg": (b"hello", "no photo that this browser can read"),
    "empty.jpg": (b"", "the file is empty"),
    "huge.png": (encode(Image.new("1", (10000, 6000)), "PNG"), "60 million pixels; the limit is 50 million"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "Browsers read JPEG"),
}


def test_a_bad_photo_gets_a_message_which_a_good_one_clears(visit):
    page = visit()
    for name, (content, expected) in BAD_PHOTOS.items():
        choose(page, content, name)
        assert message(page).startswith(name) and expected in message(page)
        assert page.locator("#bars").is_hidden()
        choose(page, BUS)
        assert message(page) == "" and "school bus" in labels_of(page)


def test_a_bad_file_gets_a_message_which_a_good_run_clears(visit, models):
    content = models["int8-dynamic"].read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        end = min(entry.header_offset for entry in archive.infolist())
    cases = {
        "text.tflite": (b"hello", 'no "TFL3" at byte 4'),
        "foreign.tflite": (content[:end], "mobilevit-hub export NAME OUT.tflite"),
        "damaged.tflite": (content[:8] + bytes(2000) + content[2008:], "LiteRT cannot run this file"),
        "labels.tflite": (changed(models["fp32"], labels=lambda text: text + "one more\n"), "labels.count"),
        "format.tflite": (changed(models["fp32"], format=7), "format is 7; expected 1"),
        "filter.tflite": (changed(models["fp32"], {"interpolation": "sharp"}), "preprocessing.interpolation"),
        "other.tflite": (
            changed(models["fp32"], {"crop": {"height": 64, "width": 64}}, input={**INPUT, "shape": [1, 64, 64, 3]}),
            "its record says uint8 (1, 64, 64, 3)",
        ),
    }
    page = visit()
    choose(page, BUS)
    for name, (bad, expected) in cases.items():
        open_file(page, bad, name)
        assert message(page).startswith(name) and expected in message(page)
        assert radio(page, "int8-dynamic").is_checked()
        if name in ("damaged.tflite", "other.tflite"):
            choose(page, BUS)
            assert message(page) == "" and next(iter(labels_of(page))) == "school bus"


INPUT = {"channels": "rgb", "dtype": "uint8", "name": "image", "range": [0, 255]}


def test_a_bad_photo_that_comes_while_the_model_is_loaded_is_not_forgotten(address, browser):
    page, waiting = browser.new_page(), []
    page.route("**/*.tflite", lambda route: waiting.append(route))
    page.goto(address)
    page.set_input_files("#photo-file", payload(b"hello", "text.jpg"))
    while not waiting:
        page.wait_for_timeout(50)
    waiting[0].continue_()
    expect(page.get_by_role("alert")).to_contain_text("text.jpg: cut short or damaged")
    expect(page.get_by_role("status")).to_have_text("No result.")
    page.close()


@pytest.mark.parametrize("what", ["**/*.wasm", "**/*.tflite"])
def test_a_file_that_cannot_be_loaded_is_named(address, browser, what):
    page = browser.new_page()
    page.route(what, lambda route: route.abort())
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("could not be loaded")
    page.unroute(what)
    choose(page, BUS)
    assert message(page) == "" and "school bus" in labels_of(page)
    page.close()


# --- Files, drop, paste, camera -------------------------------------------------------------------------------------

MARKUP = "<img src=x onerror=alert(1)>"


def test_an_own_file_is_one_more_choice_and_its_labels_are_text(visit, models):
    own = changed(models["fp32"], labels=lambda text: re.sub("^school bus$", MARKUP, text, flags=re.M))
    page = visit()
    choose(page, BUS)
    open_file(page, own, f"{MARKUP}.tflite")
    assert next(iter(labels_of(page))) == MARKUP
    assert page.locator("#verdict").inner_text() == MARKUP
    assert radio(page, f"{MARKUP}.tflite").is_checked()
    assert page.locator("#download").is_hidden()
    radio(page, "int8-dynamic").check()
    expect(page.locator("#verdict")).to_have_text("school bus")
    radio(page, f"{MARKUP}.tflite").check()
    expect(page.locator("#verdict")).to_have_text(MARKUP)


def test_the_file_can_be_downloaded(visit, models):
    page = visit()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == models["int8-dynamic"].read_bytes()
    assert download.value.suggested_filename == models["int8-dynamic"].name


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_photo_or_a_file_can_be_dropped_and_pasted(visit, models, how):
    page = visit()
    for name, file, label in (("bus.jpg", BUS, "school bus"), ("own.tflite", models["fp32"], "school bus")):
        page.evaluate(
            """async ([how, name, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name));
                const kind = how === 'drop' ? DragEvent : ClipboardEvent;
                const key = how === 'drop' ? 'dataTransfer' : 'clipboardData';
                document.body.dispatchEvent(new kind(how, {[key]: data, bubbles: true, cancelable: true}));
            }""",
            [how, name, base64.b64encode(file.read_bytes()).decode()],
        )
        expect(page.locator("#verdict")).to_have_text(label)
    assert radio(page, "own.tflite").is_checked()


def test_the_camera_is_classified_again_and_again(visit):
    page = visit(permissions=["camera"])
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#bars li")).to_have_count(5)
    expect(page.locator("#video")).to_be_visible()
    seen = {page.locator("#ms").get_attribute("data-ms")}
    for _ in range(30):
        page.wait_for_timeout(100)
        seen.add(page.locator("#ms").get_attribute("data-ms"))
    assert len(seen) > 3
    page.get_by_role("button", name="Other camera").click()
    while not page.locator("#video").evaluate("video => video.srcObject && video.videoWidth && !video.paused"):
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.locator("#video")).to_be_hidden()
    assert page.locator("#video").evaluate("video => video.srcObject === null")
    expect(page.locator("#picture")).to_be_visible()  # its last picture
    expect(page.locator("#bars li")).to_have_count(5)
    choose(page, BUS)
    assert "school bus" in labels_of(page)


def test_a_camera_that_is_not_allowed_is_explained(visit):
    page = visit()
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_role("alert")).to_contain_text("The camera was not allowed.")
    expect(page.get_by_role("button", name="Use the camera")).to_be_visible()
    page.get_by_role("button", name="school bus").click()
    expect(page.locator("#verdict")).to_have_text("school bus")
    assert message(page) == ""


# --- Reading it -----------------------------------------------------------------------------------------------------


def test_everything_works_with_the_keyboard(visit):
    page = visit()
    page.on("filechooser", lambda chooser: chooser.set_files(str(PHOTOS / "pizza.jpg")))
    expect(page.get_by_role("status")).to_have_text("Ready. Choose a photo.")

    def tab_to(selector):
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#photo-file")
    ring = "e => getComputedStyle(e.closest('.button, .choice')).outlineStyle"
    assert page.locator("#photo-file").evaluate(ring) == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_have_text("pizza")
    tab_to("#examples button:last-child")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_have_text("school bus")
    before = page.locator("#bars li").first.get_attribute("data-score")
    tab_to("[name=model]")
    page.keyboard.press("ArrowDown")
    assert page.locator("[name=model]:checked").evaluate(ring) == "solid"
    expect(page.locator("#bars li").first).not_to_have_attribute("data-score", before)
    assert page.locator("#download").get_attribute("aria-label").endswith("fp32.tflite")
    tab_to("#model-file")
    tab_to("#download")
    tab_to("summary")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_read_on_a_phone_and_on_a_desktop(visit, tmp_path, width, scheme):
    page = visit(width, 844, scheme)
    choose(page, BUS)
    page.screenshot(path=tmp_path / f"browser-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        """() => { const style = s => getComputedStyle(document.querySelector(s));
                   return [style('#photo').backgroundColor, style('body').color, style('dt').color,
                           style('#problem').color]; }"""
    )
    assert contrast(colours[1], colours[0]) >= 7
    assert min(contrast(colour, colours[0]) for colour in colours[2:]) >= 4.5
    photo, result = (page.locator(name).bounding_box() for name in ("#photo", "#result"))
    if width == 390:
        assert photo["y"] + photo["height"] <= result["y"]
    else:
        assert photo["x"] + photo["width"] <= result["x"] and photo["y"] == result["y"]


def test_the_browser_refuses_requests_to_other_hosts(address, browser):
    page = browser.new_page()
    page.goto(address)
    send = "address => fetch(address, {mode: 'no-cors'}).then(() => 'sent', () => 'refused')"
    assert page.evaluate(send, address) == "sent"
    assert page.evaluate(send, address.replace("127.0.0.1", "localhost")) == "refused"
    page.close()


def test_the_lock_file_is_whole_and_names_no_host_and_the_versions_are_exact():
    package = json.loads((BROWSER / "package.json").read_text("utf-8"))
    lock = json.loads((BROWSER / "package-lock.json").read_text("utf-8"))
    assert all(re.fullmatch(r"[\d.]+", v) for k in ("dependencies", "devDependencies") for v in package[k].values())
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)
    # else `npm ci` refuses it
    needed = {
        n for e in lock["packages"].values() for k in ("dependencies", "optionalDependencies") for n in e.get(k, ())
    }
    assert {f"node_modules/{name}" for name in needed} <= set(lock["packages"])

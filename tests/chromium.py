"""Headless Chromium for the tests of pages; what imports this is skipped where Chromium or Playwright is missing."""

import re
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

EXECUTABLE = shutil.which("chromium")
for _what, _found in {"Debian's chromium": EXECUTABLE, "playwright": find_spec("playwright")}.items():
    if _found is None:
        pytest.skip(f"needs {_what}", allow_module_level=True)
from playwright.sync_api import sync_playwright  # noqa: E402

OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream"),
]


@contextmanager
def chromium():
    """A browser, whose camera is a moving picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=OPTIONS)
        yield browser
        browser.close()


@contextmanager
def visits(browser, address, timeout):
    """A function that opens the page; at the end nothing may have failed and no other host been asked."""
    contexts, faults = [], []

    def open_page(width=1280, height=900, scheme="light", script="", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        context.set_default_timeout(timeout)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(r.url))
        # Playwright notices choosers while somebody listens, and turns that on too late for a key that is pressed at once.
        page.on("filechooser", lambda chooser: None)
        page.add_init_script(script)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def contrast(first, second):
    """Contrast of two colours as in WCAG 2: 1 to 21."""

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

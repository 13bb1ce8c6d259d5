"""A real browser for tests: the system's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
VARIABLE = "MATVIEWS_TEST_CHROMIUM"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
PATIENCE = 60_000  # milliseconds for each step, on a machine that is busy with other tests


def find_chromium() -> str | None:
    """The path of a Chromium, None if there is none."""
    given = os.environ.get(VARIABLE)
    candidates = [given] if given else [*map(shutil.which, NAMES), shutil.which(MACOS)]
    return next((path for path in candidates if path), None)


def absence() -> str | None:
    """A sentence for a person when there is no browser, else None."""
    if find_chromium():
        return None
    return f"There is no Chromium: install the package chromium, or set {VARIABLE} to its path."


class Pictures:
    """Screenshots for people; none are taken where nobody has asked for them."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None

    def __bool__(self) -> bool:
        return self._folder is not None

    def take(self, shown: Page | Locator, name: str, **options: Any) -> None:
        """Write `name`.png."""
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            shown.screenshot(path=self._folder / f"{name}.png", **options)


@contextmanager
def started_browser() -> Iterator[Browser]:
    # Playwright runs an event loop in this thread, in which Django suspects async code.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
            del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@contextmanager
def window(
    browser: Browser, *, width: int = 1280, height: int = 900, **options: Any
) -> Iterator[Page]:
    """A page in a window of its own. When a test fails, what it showed last is printed.

    Raises:
        AssertionError: at the end, if the browser complained of a script, a policy or a request.
    """
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(PATIENCE)
    # Browsers ask for it by themselves.
    context.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    context.on("page", lambda page: _listen(page, complaints))
    page = context.new_page()
    try:
        yield page
    finally:
        print(page.url, page.inner_text("body"), sep="\n")
        context.close()
    assert complaints == []


def _listen(page: Page, complaints: list[str]) -> None:
    page.on("pageerror", lambda error: complaints.append(f"error in a script: {error}"))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on(
        "response",
        lambda answer: (
            complaints.append(f"{answer.status} for {answer.url}") if answer.status >= 400 else None
        ),
    )

"""A headless Chromium: where it is, fetching it where it is missing, and what tests ask of it.

Debian's packages are installed where this runs as root; the driver is theirs, too, so that nothing
is looked up elsewhere. Each browser has a profile of its own, which goes with it.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from tests.real.commands import run

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)
PROGRAMS = ("chromium", "chromedriver")


def missing() -> str:
    """Why no browser can be driven here; empty when one can."""
    if importlib.util.find_spec("selenium") is None:
        return "the Python package selenium is not installed"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{' and '.join(absent)} cannot be found" if absent else ""


def fetch() -> None:
    """Raises OSError with what went wrong."""
    if all(shutil.which(name) for name in PROGRAMS):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise OSError("neither installed nor to be installed: that takes Debian, and root")
    install = ("apt-get", "install", "--quiet", "--yes", "--no-install-recommends")
    wanted = ("chromium", "chromium-driver", "fonts-dejavu-core")
    try:
        run(*install, *wanted)
    except OSError:
        # The lists of a fresh machine are empty.
        run("apt-get", "update", "--quiet")
        run(*install, *wanted)


class Browser:
    """One page in one window. `driver` is selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, url: str, width: int = 1024, height: int = 768) -> None:
        """Open a page in a window of this size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)

    def prefer(self, **features: str) -> None:
        """What the person prefers: `color_scheme="dark"`, `reduced_motion="reduce"`."""
        named = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def ask(self, script: str, *given: object) -> Any:
        """What `return …` says in the page."""
        return self.driver.execute_script(script, *given)

    def text(self, selector: str) -> str:
        """What is read there; empty where nothing is."""
        return str(
            self.ask("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def texts(self, selector: str) -> list[str]:
        found = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return list(self.ask(found, selector))

    def attribute(self, selector: str, name: str) -> str | None:
        found = "return document.querySelector(arguments[0])?.getAttribute(arguments[1]) ?? null"
        value = self.ask(found, selector, name)
        return None if value is None else str(value)

    def press(self, *keys: str) -> None:
        """Keys go to what has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def console(self) -> list[str]:
        """What the page has complained of since this was asked last."""
        return [f"{entry['level']} {entry['message']}" for entry in self.driver.get_log("browser")]

    def requested(self) -> set[str]:
        """Every address that was asked for since this was asked last."""
        events = (
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        )
        return {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }


@contextlib.contextmanager
def running_browser(flags: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser that ends with the block."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(
        prefix="sidecar-browser-", ignore_cleanup_errors=True
    ) as profile:
        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(str(shutil.which("chromedriver")))
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield Browser(driver)
        finally:
            driver.quit()

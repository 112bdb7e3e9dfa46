"""A page as a browser without a window shows it: what it says, fetches and fails at."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--remote-debugging-pipe", "--allow-file-access-from-files"),
)


def browser_or_skip() -> str:
    """The browser's program; without one the test is skipped."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (apt install chromium)")
    return found


@dataclass
class ShownPage:
    """What became of a page.

    Attributes:
        requests: Everything that was fetched, the page itself first.
        complaints: Errors and warnings of the console, and exceptions.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class HeadlessBrowser:
    """A browser that is spoken to through a pipe (Chrome DevTools Protocol).

    Args:
        profile: An empty folder.
    """

    def __init__(self, profile: Path) -> None:
        program = browser_or_skip()
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        # The protocol's pipe is descriptors 3 and 4 of the browser; ours must not be those.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
        redirected = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._rest, self._last_id, self._session = b"", 0, ""
        self.page = ShownPage()

    def __enter__(self) -> HeadlessBrowser:
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def show(self, url: str, width: int, *, scheme: str = "light", media: str = "screen") -> None:
        """Load a page; what it did is in `page`.

        Args:
            url: Its address.
            width: Of the window, in CSS pixels.
            scheme: `light` or `dark`.
            media: `screen` or `print`.
        """
        self.page = ShownPage()
        phone = width < 600
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._ask("Emulation.setEmulatedMedia", media=media, features=[feature])
        self._ask("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which the page's own policy does not hinder."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, event: str) -> None:
        while self._next_message().get("method") != event:
            pass

    def _next_message(self) -> dict[str, Any]:
        end = time.monotonic() + 120
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], end - time.monotonic())
            assert ready, "the browser does not answer"
            received = os.read(self._read, 1 << 20)
            assert received, f"the browser has ended with status {self._process.poll()}"
            self._rest += received
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.page.requests.append(parameters["request"]["url"])
        elif event == "Log.entryAdded":
            self.page.complaints.append(parameters["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.page.complaints.append(str(parameters["args"]))
        elif event == "Runtime.exceptionThrown":
            self.page.complaints.append(str(parameters["exceptionDetails"]))

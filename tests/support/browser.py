"""A headless Chromium that opens a file, spoken to over its debugging pipe: no driver, no package."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
)


def program():
    """The browser that is installed; None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page at a time.

    `said` has what the console said in error, every exception, and every address that was asked for beside the file.
    """

    def __init__(self, folder):
        # What the browser reads comes in at its descriptor 3, what it says goes out at 4.
        theirs, ours = os.pipe()
        self._in, out = os.pipe()
        self._out = ours
        command = 'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program(), *_FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(theirs, out),
            env={**os.environ, "IN": str(theirs), "OUT": str(out), "HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(out)
        self._numbers, self._rest, self._session, self._loaded = itertools.count(1), b"", None, False
        self.said = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def open(self, path, width, height=900, dark=False):
        """Show a file on a screen of so many pixels, and wait until it is there."""
        self.said.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._hear()

    def run(self, expression):
        """The value of an expression of JavaScript, or of what it promises."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, seconds=60):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression} did not become true; the console said {self.said}"
            time.sleep(0.1)

    def picture(self, path, whole=True):
        """Save what is shown, or the whole page, as a PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def ask(self, method, **params):
        number = next(self._numbers)
        session = {} if self._session is None else {"sessionId": self._session}
        line = json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0"
        while line:
            line = line[os.write(self._out, line) :]
        while (told := self._hear()).get("id") != number:
            pass
        assert "error" not in told, told
        return told["result"]

    def _hear(self):
        while b"\0" not in self._rest:
            heard = os.read(self._in, 1 << 20)
            assert heard, "the browser has ended"
            self._rest += heard
        line, self._rest = self._rest.split(b"\0", 1)
        told = json.loads(line)
        params = told.get("params", {})
        match told.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.said.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.said.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.said.append(params["entry"]["text"])
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith(("file:", "data:", "blob:")):
                self.said.append(params["request"]["url"])
        return told

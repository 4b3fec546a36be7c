"""Chromium without a window, driven over its DevTools pipe: real clicks and keys, screens of any size, downloads."""
import base64
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe")
PATIENCE = 60           # seconds after which something that does not happen is an error


class Browser:
    """A page in Chromium. Use it in a ``with`` block; ``folder`` gets its profile and its downloads."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __enter__(self):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        pipes = 'exec "$@" 3<&%d 4>&%d' % (theirs_in, theirs_out)      # Chromium reads from file 3, writes to file 4
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", BROWSER, *ARGUMENTS, "--user-data-dir=%s/profile" % self.folder,
             "about:blank"], pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(theirs_in), os.close(theirs_out)
        self._number, self._session, self._rest, self.events = 0, None, b"", []
        target = next(one for one in self._until_page() if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=self.folder)
        return self

    def __exit__(self, *error):
        self._session = None
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._in), os.close(self._out)

    def _until_page(self):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = self.call("Target.getTargets")["targetInfos"]
            if any(one["type"] == "page" for one in found):
                return found
        raise AssertionError("Chromium opens no page")

    def call(self, method, **parameters):
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            part = os.read(self._in, 1 << 20) if ready else b""
            assert part, "Chromium does not answer"
            self._rest += part
        answer, self._rest = self._rest.split(b"\0", 1)
        return json.loads(answer.decode())

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.until("document.readyState == 'complete'")

    def value(self, expression):
        """The value of an expression of JavaScript in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression):
        """Wait until an expression is true."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.value(expression):
                return
            time.sleep(0.02)
        raise AssertionError("never true: " + expression)

    def click(self, selector):
        """A click of the mouse into the middle of an element that can be seen."""
        where = self.value("""(() => { const one = document.querySelector(%s);
            one.scrollIntoView({block: "center"}); const box = one.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; })()""" % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def key(self, key, code=None, text=None):
        """A key is pressed and let go."""
        more = {"code": code} if code else {}
        numbers = {"Enter": 13, "Tab": 9, " ": 32, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}
        number = numbers.get(key, ord(key.upper()) if len(key) == 1 else 0)
        text = text if text is not None else {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", key=key, text=text,
                  windowsVirtualKeyCode=number, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=number, **more)

    def screen(self, width, height, dark=False, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=bool(phone))
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self, path):
        """The whole page as a PNG file."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip={
            "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1})
        with open(str(path), "wb") as handle:
            handle.write(base64.b64decode(shot["data"]))

    def complaints(self):
        """What went wrong in the page: exceptions, refused or failed requests."""
        self.value("1")
        return [event for event in self.events if event.get("method") == "Runtime.exceptionThrown" or (
            event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")]

    def requests(self):
        """The addresses that the page has asked for."""
        return [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"]

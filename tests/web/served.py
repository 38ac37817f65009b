"""The page as its users start it: a process, watched from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Runs the page as `python -m clipseg_jax.web`, and reports where the process connects to.
_WATCHED = """
import runpy, sys
def hook(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect":
        print("CONNECTS", event, repr(arguments[-1] if event == "socket.connect" else arguments[0]),
              file=sys.stderr, flush=True)
sys.addaudithook(hook)
sys.argv = ["clipseg_jax.web", *sys.argv[1:]]
runpy.run_module("clipseg_jax.web", run_name="__main__", alter_sys=True)
"""


class Served:
    """A server of the page.

    Args:
      temporary: the folder that it takes for the system's temporary one.
      arguments: of the command.
    """

    def __init__(self, temporary: Path, *arguments: str):
        environment = {
            **os.environ,
            "TMPDIR": str(temporary),
            "JAX_PLATFORMS": "cpu",
            "PYTHONUNBUFFERED": "1",
        }
        self.temporary = temporary
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, "--port", "0", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._address()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def _address(self) -> str:
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            for line in list(self.lines):
                if found := re.match(r"(http://\S+:\d+)/ offers", line):
                    return found[1]
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"the page did not start: {self.output}")

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self.lines)

    @property
    def passes(self) -> int:
        """Passes of a network so far."""
        return len(re.findall(r"^pass: ", self.output, re.M))

    @property
    def connections(self) -> list[str]:
        """What it has connected to, or looked up, so far."""
        return [line for line in self.lines if line.startswith("CONNECTS")]

    def memory(self, what: str) -> int:
        """Bytes of its resident memory: "VmRSS" now, "VmHWM" at most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(rf"^{what}:\s+(\d+) kB", text, re.M)[1])

    def files(self) -> list[Path]:
        """Its temporary files."""
        walk = os.walk(self.temporary)  # which takes no notice of what goes meanwhile
        return [Path(folder, name) for folder, _, names in walk for name in names]

    def stop(self, number: int = signal.SIGINT, seconds: float = 15) -> int:
        """Sends a signal; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Visitor:
    """A browser's tab without the browser: the requests that the page's script sends."""

    def __init__(self, url: str, name: str):
        self.url, self.name = url, name
        self.config = json.loads(self.get("/config"))

    def get(self, path: str) -> str:
        """The body of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return answer.read().decode()

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
        """The status of an answer, and its body."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def event(self, element: str | None, trigger: str) -> dict:
        """The page's event of an element by its id; None: of the page."""
        ids = {each["props"].get("elem_id"): each["id"] for each in self.config["components"]}
        wanted = [ids.get(element), trigger] if element else None
        for each in self.config["dependencies"]:
            for target in each["targets"]:
                if list(target) == wanted or (wanted is None and target[1] == trigger):
                    return each
        raise AssertionError(f"no event {trigger} of {element}")

    def send(self, event: dict, data: list, path: str = "queue/join") -> tuple[int, str]:
        """Joins the queue with an event."""
        body = {"data": data, "fn_index": event["id"], "session_hash": self.name}
        return self.post(f"/gradio_api/{path}", json.dumps(body).encode())

    def run_at_once(self, event: dict, data: list) -> list:
        """The values of an event that does not wait in the queue."""
        status, text = self.send(event, data, "run/predict")
        assert status == 200, text
        return json.loads(text)["data"]

    def run(self, event: dict, data: list) -> dict:
        """The result of an event; of one that the queue refuses, the error."""
        status, text = self.send(event, data)
        if status != 200:
            return {"success": False, "status": status, "error": json.loads(text)["detail"]}
        wanted = json.loads(text)["event_id"]
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.name}"
        with urllib.request.urlopen(address, timeout=120) as stream:
            for line in stream:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed" and message["event_id"] == wanted:
                    return {"success": message["success"], **message["output"]}
        raise AssertionError("the stream ended without a result")

"""A program of the bench, running in the clients' pod."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from tests.e2e import kit


class Load:
    """The program reads the password from standard input, says {"began": …}, in seconds since the epoch, and at its end
    {"summary": …}."""

    def __init__(self, clients: kit.Clients, program: Path, password: str, *options: str) -> None:
        command = ("python3", "-c", program.read_text(), *options)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        where = ("-n", clients.namespace, "exec", "-i", clients.POD, "--")
        self._process = clients.kubectl.popen(*where, *command, **pipes)
        self._password = password
        self.began = 0.0  # seconds since the epoch

    def __enter__(self) -> Self:
        self.say(self._password)
        self.began = self.told(20)["began"]
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            self._process.kill()
        with self._process:  # closes its pipes, then waits for its end
            pass

    def say(self, line: str) -> None:
        """A line for its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def told(self, timeout: float) -> dict[str, Any]:
        """Its next line. Raises KubectlError if that is none of JSON, or takes over `timeout` seconds."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(timeout, self._process.kill)
        watchdog.start()
        line = ""
        try:
            line = self._process.stdout.readline()
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            words = (line + self._process.stdout.read()).strip() or f"no word for {timeout:g} s, or an early end"
            raise kit.KubectlError(f"the clients failed: {words}") from None
        finally:
            watchdog.cancel()
        return found

    def summary(self, timeout: float) -> dict[str, Any]:
        """Its last line, within `timeout` seconds. Raises KubectlError as `told` does."""
        found: dict[str, Any] = self.told(timeout)["summary"]
        return found

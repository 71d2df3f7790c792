"""What the operator's process does not load: memory that nobody would miss until it is gone (bench/fleet.py)."""

import subprocess
import sys

UNUSED = ("kubernetes.config", "kubernetes.dynamic", "requests", "oauthlib", "websocket", "psycopg")


def test_the_operator_loads_neither_the_synchronous_client_nor_psycopg() -> None:
    program = f"""
import sys
from poolfleet.controller import app, pools, servers
loaded = [name for name in {UNUSED!r} if name in sys.modules]
assert not loaded, f"loaded: {{loaded}}"
import kubernetes.client  # who needs more of the package still gets it
assert kubernetes.client.CoreV1Api
"""
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

"""The token commands of examples/tokens against servers that answer as their documentation says."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from poolfleet.plan.tokens import Token, read_output

TOKENS = Path(__file__).parents[2] / "examples/tokens"
NOW = 1_800_000_000.0


class Cloud(HTTPServer):
    """Answers every request with `answer`, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answer: dict[str, object] = {}
        self.asked: list[tuple[str, str, dict[str, str], str]] = []  # method, path, header, body


class Asked(BaseHTTPRequestHandler):
    server: Cloud

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        content = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def printed(script: str, **environment: str) -> Token:
    done = subprocess.run(
        [sys.executable, TOKENS / script], env={**os.environ, **environment}, capture_output=True, check=True
    )
    assert not done.stderr
    return read_output(done.stdout, NOW)


def test_entra(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a.federated.token")
    cloud.answer = {"token_type": "Bearer", "expires_in": 86399, "ext_expires_in": 86399, "access_token": "ey.J.hbG"}
    token = printed(
        "entra.py",
        AZURE_AUTHORITY_HOST=f"http://127.0.0.1:{cloud.server_port}/",
        AZURE_TENANT_ID="tenant",
        AZURE_CLIENT_ID="client",
        AZURE_FEDERATED_TOKEN_FILE=str(tmp_path / "token"),
    )
    assert (token.text, token.expires) == ("ey.J.hbG", NOW + 86399)
    [(method, path, _, body)] = cloud.asked
    assert (method, path) == ("POST", "/tenant/oauth2/v2.0/token")
    form = {key: value for key, [value] in parse_qs(body).items()}
    assert (form["grant_type"], form["client_id"]) == ("client_credentials", "client")
    assert form["client_assertion"] == "a.federated.token"
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert form["scope"] == "https://ossrdbms-aad.database.windows.net/.default"


def test_cloud_sql(cloud: Cloud) -> None:
    cloud.answer = {"access_token": "ya29.c.token", "expires_in": 3599, "token_type": "Bearer"}
    token = printed("cloudsql.py", GCE_METADATA_HOST=f"127.0.0.1:{cloud.server_port}")
    assert (token.text, token.expires) == ("ya29.c.token", NOW + 3599)
    [(method, path, headers, _)] = cloud.asked
    assert (method, headers["Metadata-Flavor"]) == ("GET", "Google")
    where, _, scope = path.partition("?scopes=")
    assert where == "/computeMetadata/v1/instance/service-accounts/default/token"
    assert scope == "https://www.googleapis.com/auth/sqlservice.login"

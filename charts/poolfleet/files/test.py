"""What `helm test` runs in a pod: argv[1] is the operator's host:port. Standard library only."""

import json
import ssl
import sys
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "/apis/poolfleet.dev/v1alpha1"
WANTED = {"pgpools", "pgpools/status", "pgpools/scale", "pgservers", "pgservers/status"}


def get(connection: HTTPConnection, path: str, hint: str = "", **headers: str) -> bytes:
    """Body of `path`; exits non-zero with what came instead of a success, and with `hint`."""
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        sys.exit(f"GET {path} from {connection.host}: {response.status} {body[:500].decode(errors='replace')} {hint}")
    return body


def main(operator: str) -> None:
    """Exit non-zero with a reason unless the operator is ready and the custom resources are served."""
    get(HTTPConnection(operator, timeout=10), "/readyz")
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    token = (ACCOUNT / "token").read_text(encoding="ascii").strip()
    api = HTTPSConnection("kubernetes.default.svc", timeout=10, context=trust)
    hint = "Are the CRDs installed (crds.install)?"
    found = json.loads(get(api, API, hint, Authorization=f"Bearer {token}"))
    if missing := WANTED - {resource["name"] for resource in found["resources"]}:
        sys.exit(f"{API} does not serve {', '.join(sorted(missing))}. {hint}")
    sys.stdout.write(f"The operator is ready, and {', '.join(sorted(WANTED))} are served.\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""A server of external metrics (external.metrics.k8s.io/v1beta1) for tests; others have prometheus-adapter or KEDA.

    python3 external_metrics.py SOURCE CERTIFICATE

It answers with what the operator's /metrics says at that moment. SOURCE is the URL of the operator's Service, without a
path; CERTIFICATE a PEM file with certificate and key. Listens on 8443. Runs in a pod of the operator's image.
"""

import json
import ssl
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

API = "external.metrics.k8s.io/v1beta1"
TRIES = 30  # the Service leads to the leader, which has the numbers, or to a standby, which has none


def samples(source: str) -> list[Metric]:
    """The metrics of the operator that leads. Raises LookupError if none is found."""
    for _ in range(TRIES):
        with urllib.request.urlopen(f"{source}/metrics", timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        if any(sample.name == "poolfleet_leader" and sample.value == 1 for each in families for sample in each.samples):
            return families
    raise LookupError("no operator leads")


def value(families: list[Metric], metric: str, labels: dict[str, str]) -> int | None:
    """The sum of the samples of `metric` with these labels; None if there is none."""
    found = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    ]
    return int(sum(found)) if found else None


class Handler(BaseHTTPRequestHandler):
    """Discovery, and one path per metric and namespace; the namespace is the metric's label `namespace`."""

    protocol_version = "HTTP/1.1"
    source = ""

    def do_GET(self) -> None:
        """Answer."""
        url = urlsplit(self.path)
        match url.path.strip("/").split("/"):
            case ["apis", group, version] if f"{group}/{version}" == API:
                self._say(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API, "resources": []})
            case ["apis", group, version, "namespaces", namespace, metric] if f"{group}/{version}" == API:
                selector = parse_qs(url.query).get("labelSelector", [""])[0]
                pairs = (each.partition("=") for each in selector.split(",") if each)
                self._metric(metric, {"namespace": namespace, **{name: wanted for name, _, wanted in pairs}})
            case _:
                self._say(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def _metric(self, metric: str, labels: dict[str, str]) -> None:
        try:
            number = value(samples(self.source), metric, labels)
        except (OSError, LookupError) as error:
            failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 503, "message": str(error)}
            self._say(503, failure)
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        item = {"metricName": metric, "metricLabels": labels, "timestamp": now, "value": str(number)}
        items = [] if number is None else [item]
        self._say(200, {"kind": "ExternalMetricValueList", "apiVersion": API, "metadata": {}, "items": items})

    def _say(self, code: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main(source: str, certificate: str) -> None:
    """Serve for ever."""
    Handler.source = source
    server = ThreadingHTTPServer(("", 8443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

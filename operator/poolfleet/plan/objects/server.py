"""The PgServer of a pool with an inline server: one code path for both ways to name a server."""

import copy
from collections.abc import Mapping
from typing import Any

from poolfleet.api import names
from poolfleet.plan.objects.meta import Manifest, Owner, manifest


def inline_server(owner: Owner, spec: Mapping[str, Any]) -> Manifest:
    """PgServer x with the PgPool's spec.server as its spec."""
    return manifest(owner, names.API_VERSION, names.SERVER_KIND, owner.name, spec=copy.deepcopy(dict(spec)))

"""The way to the API server.

`kubernetes` imports its synchronous half with all that this needs (requests, oauthlib, websocket …) whenever anything
of it is imported: 230 modules and 7 MiB that a process with `kubernetes.aio` alone never uses. So the package itself is
put in place here without running its `__init__`; its submodules are imported as ever.
"""

import importlib.util
import sys

if "kubernetes" not in sys.modules and (_spec := importlib.util.find_spec("kubernetes")) is not None:
    sys.modules["kubernetes"] = importlib.util.module_from_spec(_spec)

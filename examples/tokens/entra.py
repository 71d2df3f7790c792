"""Print a token of Microsoft Entra for Azure Database for PostgreSQL (docs/credentials.md).

For a pod with Microsoft Entra Workload ID, which puts the four variables into its environment.
"""

import json
import os
import urllib.parse
import urllib.request
from pathlib import Path


def main() -> None:
    authority, tenant = os.environ["AZURE_AUTHORITY_HOST"], os.environ["AZURE_TENANT_ID"]
    form = {
        "grant_type": "client_credentials",
        "client_id": os.environ["AZURE_CLIENT_ID"],
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": Path(os.environ["AZURE_FEDERATED_TOKEN_FILE"]).read_text(),
        "scope": "https://ossrdbms-aad.database.windows.net/.default",
    }
    url = f"{authority.rstrip('/')}/{tenant}/oauth2/v2.0/token"
    with urllib.request.urlopen(url, urllib.parse.urlencode(form).encode(), timeout=8) as answer:
        said = json.load(answer)
    print(json.dumps({"token": said["access_token"], "expiresInSeconds": said["expires_in"]}))


if __name__ == "__main__":
    main()

"""Print a login token for Cloud SQL (docs/credentials.md).

For a pod on GKE whose Kubernetes service account acts as a Google service account (Workload Identity).
"""

import json
import os
import urllib.request

SCOPE = "https://www.googleapis.com/auth/sqlservice.login"


def main() -> None:
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token?scopes={SCOPE}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=8) as answer:
        said = json.load(answer)
    print(json.dumps({"token": said["access_token"], "expiresInSeconds": said["expires_in"]}))


if __name__ == "__main__":
    main()

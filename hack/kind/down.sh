#!/bin/bash
# Deletes the kind cluster `poolfleet`. The Docker daemon and everything in the cache stay.
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
if command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1 && command -v kind >/dev/null; then
  step "kind delete cluster" kind delete cluster --name "$CLUSTER" --quiet
fi
rm -rf "$POOLFLEET_ROOT/.cluster"

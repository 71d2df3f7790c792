#!/bin/bash
# hack/kind/load.sh IMAGE…: brings images of the local Docker daemon onto the cluster's node; those it has are skipped.
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
node=$CLUSTER-control-plane
missing=()
for image in "$@"; do
  id=$(docker image inspect -f '{{.Id}}' "$image")
  # containerd lists an image by name and, as the CRI does, by the id of its configuration: ours must be both
  names=$(docker exec "$node" ctr -n k8s.io images list -q)
  grep -q "/$image\$" <<<"$names" && grep -qx "$id" <<<"$names" || missing+=("$image")
done
((${#missing[@]})) || exit 0
step "kind load ${missing[*]}" kind load docker-image --name "$CLUSTER" --quiet "${missing[@]}"

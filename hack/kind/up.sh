#!/bin/bash
# A ready kind cluster `poolfleet`, kubeconfig in .cluster/kubeconfig: made, started again, or used as it is. Idempotent.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"
. "$here/versions.env"
node=$CLUSTER-control-plane
mkdir -p "$(dirname "$KUBECONFIG")"

"$here/docker.sh"
"$here/binaries.sh" kind helm
command -v kubectl >/dev/null || "$here/binaries.sh" apiserver
locked cluster

# Every container of kube-system is ready, and since this start of the node: what the API server remembers of the time
# before does not count.
ready() {
  local started containers
  started=$(docker container inspect -f '{{.State.StartedAt}}' "$node")
  containers=$(kubectl -n kube-system get pods --request-timeout 3s -o jsonpath='{range .items[*].status.containerStatuses[*]}{.ready} {.state.running.startedAt}{"\n"}{end}' 2>/dev/null) || return 1
  awk -v started="${started%%.*}Z" '$1 != "true" || $2 < started { bad = 1 } END { exit bad || NR < 7 }' <<<"$containers"
}
wait_ready() { # wait_ready SECONDS
  local end=$((SECONDS + $1))
  until ready; do
    ((SECONDS < end)) || return 1
    sleep 0.5
  done
  kubectl wait node --all --for=condition=Ready --timeout="$1s" >/dev/null
}
write_kubeconfig() {
  (umask 077 && kind get kubeconfig --name "$CLUSTER" >"$KUBECONFIG.part")
  mv "$KUBECONFIG.part" "$KUBECONFIG"
}
made_of=$(sha256sum "$here/kind.yaml" | cut -c1-16)

if docker container inspect "$node" >/dev/null 2>&1; then
  restart() { # the node is stopped when dockerd was: the cluster's data is still in it
    docker start "$node" >/dev/null
    write_kubeconfig
    wait_ready 120
  }
  usable=1
  if [ "$(docker container inspect -f '{{.State.Running}}' "$node")" != true ]; then
    step "start the stopped cluster $CLUSTER" restart || usable=0
  else
    write_kubeconfig && wait_ready 60 || usable=0
  fi
  if ((usable)) && [ "$(docker exec "$node" cat /kind/poolfleet 2>/dev/null)" = "$made_of" ]; then
    say "cluster $CLUSTER is up"
    exit 0
  fi
  say "cluster $CLUSTER is broken or made from another kind.yaml: making it anew"
  kind delete cluster --name "$CLUSTER" --quiet
fi

image=()
if docker image inspect "$NODE_IMAGE" >/dev/null 2>&1 || ! can_pull; then
  "$here/node-image.sh"
  image=(--image "$NODE_IMAGE")
fi
create() {
  (umask 077 && kind create cluster --name "$CLUSTER" --config "$here/kind.yaml" "${image[@]}" --wait 120s --quiet)
  docker exec "$node" sh -c "echo $made_of >/kind/poolfleet"
  write_kubeconfig
  wait_ready 120
}
step "kind create cluster" create

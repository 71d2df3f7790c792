#!/bin/bash
# hack/install.sh OPERATOR-IMAGE PGBOUNCER-IMAGE [HELM ARGUMENT…]: Helm release `poolfleet` in namespace `poolfleet-system`.
# Nothing is done if the release was installed from the very same chart, images and arguments.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$POOLFLEET_ROOT"
release=poolfleet namespace=poolfleet-system
arguments=(--set-string "image.tag=${1##*:}" --set-string "fleet.image.tag=${2##*:}" "${@:3}")
content=$({ find charts/poolfleet -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; printf '%s\0' "${arguments[@]}"; } | sha256sum | cut -c1-16)

rolled_out() {
  kubectl -n "$namespace" rollout status deployment -l "app.kubernetes.io/instance=$release" --timeout=90s >/dev/null
}
installed() { # status and description of the release
  helm status "$release" -n "$namespace" -o json 2>/dev/null |
    python3 -c 'import json, sys; info = json.load(sys.stdin)["info"]; print(info["status"], info["description"])' 2>/dev/null
}
if [ "$(installed)" = "deployed content $content" ] && rolled_out; then
  say "release $release is up to date"
  exit 0
fi
install() {
  if ! helm upgrade "$release" charts/poolfleet --install --namespace "$namespace" --create-namespace \
    --description "content $content" --wait --timeout 120s "${arguments[@]}" >/dev/null; then
    kubectl -n "$namespace" get pods -o wide >&2
    kubectl -n "$namespace" logs -l "app.kubernetes.io/instance=$release" --tail=30 --prefix >&2 || true
    die "the chart could not be installed"
  fi
}
step "helm upgrade --install $release" install

#!/bin/bash
# The kind cluster with the project's images and chart in it. Does only what has changed; prints what and how long.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$POOLFLEET_ROOT"
hack/kind/up.sh
names=$(hack/images.sh postgres pgbouncer clients operator)
read -r -d '' postgres pgbouncer clients operator <<<"$names" || true
hack/kind/load.sh "$postgres" "$pgbouncer" "$clients" "$operator"
hack/install.sh "$operator" "$pgbouncer"

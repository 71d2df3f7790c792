#!/bin/bash
# What the integration tests run as plain processes: etcd, kube-apiserver, PostgreSQL, PgBouncer. Idempotent.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
"$POOLFLEET_ROOT/hack/kind/binaries.sh" apiserver
if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; then
  # only the programs: no database cluster is made, no service started
  if [ "$(id -u)" = 0 ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  need postgresql
fi
"$POOLFLEET_ROOT/hack/pgbouncer-root.sh" >/dev/null

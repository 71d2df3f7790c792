#!/usr/bin/env bash
# Put PgBouncer 1.26 with its libraries into ${POOLFLEET_CACHE:-~/.cache/poolfleet}/pgbouncer-root, for the tests that
# run a real one on this machine. Idempotent: an existing, working root is kept. Prints the folder.
#
# Debian's stable releases carry an older PgBouncer, so it comes from forky, as in images/pgbouncer/Dockerfile.
# The mirror is the machine's own; a mirror whose Release file has expired is taken as it is (signatures still count).
set -euo pipefail

cache="${POOLFLEET_CACHE:-$HOME/.cache/poolfleet}"
root="$cache/pgbouncer-root"
suite="${PGBOUNCER_SUITE:-forky}"

works() {
    [ -x "$1/usr/sbin/pgbouncer" ] && chroot "$1" /usr/sbin/pgbouncer --version >/dev/null 2>&1
}

if works "$root"; then
    echo "$root"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "hack/pgbouncer-root.sh: must run as root (mmdebstrap and chroot)" >&2
    exit 1
fi
if ! command -v mmdebstrap >/dev/null; then
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends mmdebstrap >&2
fi
mirror="$(sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)"
if [ -z "$mirror" ]; then
    mirror="$(sed -n 's/^deb[[:space:]]\(\[[^]]*\][[:space:]]\)\?\([^[:space:]]*\).*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)"
fi
if [ -z "$mirror" ]; then
    echo "hack/pgbouncer-root.sh: no Debian mirror found in this machine's apt sources" >&2
    exit 1
fi
mkdir -p "$cache"
new="$root.new.$$"
trap 'rm -rf "$new"' EXIT
echo "PgBouncer from Debian $suite into $root …" >&2
mmdebstrap --quiet --variant=minbase --include=pgbouncer,ca-certificates \
    --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$new" "$mirror" >&2
works "$new" || { echo "hack/pgbouncer-root.sh: the installed pgbouncer does not run" >&2; exit 1; }
chmod 0755 "$new"
rm -rf "$root"
mv "$new" "$root"
echo "$root"

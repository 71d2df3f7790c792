# shellcheck shell=bash
# Sourced by every script under hack/: where things are, and how to say what takes time.
# POOLFLEET_CACHE names the one folder in which everything that is slow to make is kept (an empty folder = a bare machine).

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash 5 or newer is needed" >&2
  exit 1
fi
POOLFLEET_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
POOLFLEET_CACHE=${POOLFLEET_CACHE:-$HOME/.cache/poolfleet}
POOLFLEET_BIN=${POOLFLEET_BIN:-$POOLFLEET_CACHE/kind/bin} # kind, kubectl, helm, etcd, kube-apiserver, …
CLUSTER=poolfleet
export POOLFLEET_ROOT POOLFLEET_CACHE POOLFLEET_BIN CLUSTER
export KUBECONFIG=$POOLFLEET_ROOT/.cluster/kubeconfig
export GOMODCACHE=$POOLFLEET_CACHE/go/mod GOCACHE=$POOLFLEET_CACHE/go/build
export PATH=$POOLFLEET_BIN:$PATH
mkdir -p "$POOLFLEET_CACHE" "$POOLFLEET_BIN"

say() { echo "--- $*"; }
die() { echo "error: $*" >&2; exit 1; }

# step TEXT COMMAND…: run the command, then say how long it took. In a pipe or a condition errexit would be off
# inside the command, so it runs as a plain call and a failure ends the script.
step() {
  local text=$1 start=$EPOCHREALTIME
  shift
  "$@"
  LC_ALL=C awk -v a="$start" -v b="$EPOCHREALTIME" -v t="$text" 'BEGIN { printf "=== %6.1f s  %s\n", b - a, t }'
}

# locked NAME: at most one process on this machine works on NAME until the calling (sub)shell ends.
locked() {
  exec {lock_fd}>"$POOLFLEET_CACHE/.lock-$1"
  flock "$lock_fd"
}

# need PACKAGE…: Debian packages that must be installed; installs what is missing where that is possible (root, apt).
need() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f '${Status}\n' "$p" 2>/dev/null | grep -q ' installed$' || missing+=("$p")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "please install: ${missing[*]}"
  say "apt-get install ${missing[*]}"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null </dev/null
}

# debian_mirror: the URI of the Debian archive that this machine itself uses.
debian_mirror() {
  local uri=""
  if [ -e /etc/apt/sources.list.d/debian.sources ]; then
    uri=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources)
  fi
  if [ -z "$uri" ] && [ -e /etc/apt/sources.list ]; then
    uri=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }' /etc/apt/sources.list)
  fi
  [ -n "$uri" ] || die "no Debian archive in this machine's apt sources"
  echo "$uri"
}

# can_pull: does an image registry answer the Docker daemon? POOLFLEET_PULL=yes|no decides without asking.
can_pull() {
  case ${POOLFLEET_PULL:-} in
  yes) return 0 ;;
  no) return 1 ;;
  esac
  if timeout 15 docker pull -q hello-world >/dev/null 2>&1; then POOLFLEET_PULL=yes; else POOLFLEET_PULL=no; fi
  export POOLFLEET_PULL
  [ "$POOLFLEET_PULL" = yes ]
}

#!/bin/bash
# Makes a Docker daemon answer. Where one does already (a laptop), nothing is touched. Idempotent.
# Elsewhere (root on Debian, no init system): installs docker.io and starts dockerd, which stays when this script ends.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"

answers() { timeout 20 docker info >/dev/null 2>&1; }
answers && exit 0
[ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ] || die "no Docker daemon answers: please start Docker"
need docker.io containerd runc iptables
if [ -d /run/systemd/system ]; then
  systemctl start docker
  answers && exit 0
fi

# A machine whose processes were ended keeps its files: a pid that now belongs to another process must not be believed.
forget_stale() { # forget_stale PIDFILE PROCESS-NAME
  local pid
  [ -e "$1" ] || return 0
  pid=$(cat "$1")
  # a zombie has its name still
  [ "$(awk '{ print $2, $3 != "Z" }' "/proc/$pid/stat" 2>/dev/null)" = "($2) 1" ] || rm -f "$1"
}
forget_stale /var/run/docker.pid dockerd
forget_stale /var/run/docker/containerd/containerd.pid containerd

arguments=(--storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs)
# A root without CAP_SYS_RESOURCE (bit 24) cannot give it to a privileged container, nor negative oom scores, nor
# higher rlimits, and runc refuses the container for each of them: the wrapper takes them out of the container's spec.
if (((0x$(awk '/^CapEff:/ { print $2 }' /proc/self/status) >> 24 & 1) == 0)); then
  install -m 0755 "$here/runc-wrapper" /usr/local/sbin/poolfleet-runc
  arguments+=(--add-runtime stripped=/usr/local/sbin/poolfleet-runc --default-runtime stripped --oom-score-adjust 0)
fi
# dockerd sets the FORWARD policy to DROP only where it turns forwarding on itself
echo 1 >/proc/sys/net/ipv4/ip_forward

state=$POOLFLEET_CACHE/docker
mkdir -p "$state"
start_dockerd() {
  setsid nohup dockerd "${arguments[@]}" >"$state/dockerd.log" 2>&1 </dev/null &
  local pid=$! i
  echo "$pid" >"$state/dockerd.pid"
  for ((i = 0; i < 240; i++)); do
    answers && return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
  done
  tail -30 "$state/dockerd.log" >&2
  die "dockerd did not come up, see $state/dockerd.log"
}
step "dockerd" start_dockerd

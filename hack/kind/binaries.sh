#!/bin/bash
# hack/kind/binaries.sh GROUP…: builds programs from Go modules into $POOLFLEET_BIN, each version once.
#   kind, helm       from their modules
#   apiserver        etcd and kube-apiserver with kubectl: what the integration tests run
#   node             all that the node image needs
# A kind or helm that the machine has already is good enough: it is linked into the folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"
. "$here/versions.env"
export CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" GOBIN="$POOLFLEET_BIN"

build() { # build STAMP COMMAND…: once per stamp
  local stamp=$POOLFLEET_BIN/.$1
  shift
  [ -e "$stamp" ] && return 0
  command -v go >/dev/null || die "Go is needed to build ${stamp##*/.}"
  step "build ${stamp##*/.}" "$@"
  touch "$stamp"
}
kubernetes() { # kubernetes PROGRAM…
  local v=k8s.io/component-base/version
  (cd "$here/modules/k8s" && go build -o "$POOLFLEET_BIN/" \
    -ldflags "-s -w -X $v.gitVersion=$K8S -X $v.gitMajor=1 -X $v.gitMinor=$(cut -d. -f2 <<<"$K8S") -X $v.gitTreeState=clean" \
    "${@/#/k8s.io/kubernetes/cmd/}")
}
etcd() { (cd "$here/modules/etcd" && go build -ldflags "-s -w" -o "$POOLFLEET_BIN/etcd" go.etcd.io/etcd/server/v3); }
pause() {
  need gcc libc6-dev
  local source
  source=$(cd "$here/modules/k8s" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
  gcc -Os -Wall -static -DVERSION="$PAUSE" -o "$POOLFLEET_BIN/pause" "$source/build/pause/linux/pause.c"
}
own_or_built() { # own_or_built PROGRAM VERSION PACKAGE: the machine's own program, linked, else one that is built
  local own
  [ -L "$POOLFLEET_BIN/$1" ] && [ -x "$POOLFLEET_BIN/$1" ] && return 0
  if [ ! -e "$POOLFLEET_BIN/.$1-$2" ] && own=$(PATH=${PATH//"$POOLFLEET_BIN:"/} command -v "$1"); then
    ln -sf "$own" "$POOLFLEET_BIN/$1"
  else
    build "$1-$2" go install -ldflags "-s -w" "$3@$2"
  fi
}

(
  locked binaries
  for group in "$@"; do
    case $group in
    kind) own_or_built kind "$KIND" sigs.k8s.io/kind ;;
    helm) own_or_built helm "$HELM" helm.sh/helm/v3/cmd/helm ;;
    apiserver)
      [ -e "$POOLFLEET_BIN/.k8s-$K8S" ] || build "k8s-apiserver-$K8S" kubernetes kube-apiserver kubectl
      build "etcd-$ETCD" etcd
      ;;
    node)
      build "k8s-$K8S" kubernetes kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl
      build "etcd-$ETCD" etcd
      build "pause-$PAUSE" pause
      build "coredns-$COREDNS" go install -ldflags "-s -w" "github.com/coredns/coredns@$COREDNS"
      build "local-path-provisioner-$LOCAL_PATH" \
        go install -ldflags "-s -w" "github.com/rancher/local-path-provisioner@$LOCAL_PATH"
      ;;
    *) die "unknown group $group" ;;
    esac
  done
)

#!/bin/bash
# Makes the kind node image $NODE_IMAGE without any image registry: kind's own files from its Go module over a Debian
# tree, the control plane's images built from Go binaries and imported. It is what `kind build node-image` would make;
# kindnetd and cri-tools are not to be had as modules, node/pod-routes and node/crictl stand in. Idempotent; the
# finished image is kept in the cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"
. "$here/versions.env"
export DOCKER_BUILDKIT=0
cache=$POOLFLEET_CACHE/kind saved=$POOLFLEET_CACHE/kind/node-image.tar.zst
exists() { docker image inspect "$NODE_IMAGE" >/dev/null 2>&1; }

locked node-image
exists && exit 0
need zstd jq mmdebstrap
if [ "$(cat "$saved.name" 2>/dev/null)" = "$NODE_IMAGE" ]; then
  load() { zstd -dcq "$saved" | docker load -q >/dev/null; }
  step "load the saved node image" load
  exists && exit 0
fi
"$here/binaries.sh" kind node

work=$(mktemp -d)
container=poolfleet-node-build-$$
scratch=() # images that only serve the build
clean() {
  docker rm -f "$container" >/dev/null 2>&1 || true
  [ ${#scratch[@]} = 0 ] || docker rmi "${scratch[@]}" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean EXIT

tree() { # tree NAME PACKAGES: a Debian tree as the image localhost/NAME:local
  [ -s "$cache/$1.tar" ] || {
    mmdebstrap --quiet --format=tar --variant=minbase --include="$2" --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      "$SUITE" "$cache/$1.tar.part" "$(debian_mirror)"
    mv "$cache/$1.tar.part" "$cache/$1.tar"
  }
  docker import "$cache/$1.tar" "localhost/$1:local" >/dev/null
  scratch+=("localhost/$1:local")
}

images=()
wanted() { "$POOLFLEET_BIN/kubeadm" config images list --kubernetes-version "$K8S" | grep "/$1:"; } # the name kubeadm asks for
static() { # static IMAGE PATH BINARY: an image of one static binary
  mkdir -p "$work/static$(dirname "$2")"
  cp "$3" "$work/static$2"
  tar -C "$work/static" --owner=0 --group=0 -c . |
    docker import -c "ENV PATH=/usr/local/bin:/usr/bin:/bin" -c "ENTRYPOINT [\"$2\"]" - "$1" >/dev/null
  rm -rf "$work/static"
  images+=("$1")
}
control_plane() {
  local c proxy
  for c in kube-apiserver kube-controller-manager kube-scheduler; do
    static "$(wanted $c)" "/usr/local/bin/$c" "$POOLFLEET_BIN/$c"
  done
  static "$(wanted etcd)" /usr/local/bin/etcd "$POOLFLEET_BIN/etcd"
  static "$(wanted coredns/coredns)" /coredns "$POOLFLEET_BIN/coredns"
  static "$(wanted pause)" /pause "$POOLFLEET_BIN/pause"
  static "localhost/local-path-provisioner:$LOCAL_PATH" /usr/local/bin/local-path-provisioner "$POOLFLEET_BIN/local-path-provisioner"
  proxy=$(wanted kube-proxy)
  mkdir "$work/net"
  cp "$POOLFLEET_BIN/kube-proxy" "$POOLFLEET_BIN/kubectl" "$here/node/pod-routes" "$work/net"
  docker build -q -t "$proxy" -t localhost/kind-net:local -f - "$work/net" >/dev/null 2>"$work/build.log" <<'D' || { cat "$work/build.log" >&2; return 1; }
FROM localhost/kind-netbase:local
COPY kube-proxy kubectl pod-routes /usr/local/bin/
D
  images+=("$proxy" localhost/kind-net:local)
  scratch=("${images[@]}" "${scratch[@]}")
  docker save -o "$work/images.tar" "${images[@]}"
}

node_tree() {
  local kind
  kind=$(GOFLAGS=-mod=mod go mod download -json "sigs.k8s.io/kind@$KIND" | jq -r .Dir)
  mkdir -p "$work/node/manifests"
  cp -r --no-preserve=mode "$kind/images/base/files" "$work/node/files"
  cp "$POOLFLEET_BIN"/{kubeadm,kubelet,kubectl} "$work/node/"
  cp "$here/node/crictl" "$work/node/files/usr/local/bin/"
  cp "$here/node/default-cni.yaml" "$work/node/manifests/"
  # kind's storage manifest, with our names of the images
  sed -n '/^const defaultStorageManifest = `/,/^`/p' "$kind/pkg/build/nodeimage/const_storage.go" |
    sed -e '1d;$d' -e "s#\` + storageProvisionerImage + \`#localhost/local-path-provisioner:$LOCAL_PATH#" \
      -e 's#` + storageHelperImage + `#localhost/kind-net:local#' >"$work/node/manifests/default-storage.yaml"
  sed -i -e "s#^  sandbox_image = .*#  sandbox_image = \"$(wanted pause)\"#" \
    -e 's#restrict_oom_score_adj = false#restrict_oom_score_adj = true#' "$work/node/files/etc/containerd/config.toml"
  docker build -q -t localhost/kind-node-base:local -f - "$work/node" >/dev/null 2>"$work/build.log" <<D || { cat "$work/build.log" >&2; return 1; }
FROM localhost/kind-nodebase:local
COPY files/ /
COPY kubeadm kubelet kubectl /usr/bin/
COPY manifests/ /kind/manifests/
RUN set -e; chmod 0755 /usr/local/bin/* /kind/bin/*; echo -n $K8S >/kind/version; \
 ln -s /usr/bin/containerd /usr/bin/containerd-shim-runc-v2 /usr/bin/ctr /usr/local/bin/; \
 find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete; \
 rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
   /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
   /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/*; \
 echo ReadKMsg=no >>/etc/systemd/journald.conf; \
 systemctl enable kubelet.service containerd.service undo-mount-hacks.service; systemctl mask systemd-binfmt.service; \
 mkdir -p /etc/kubernetes/manifests /opt/cni/bin /etc/cni/net.d; \
 cp /usr/lib/cni/host-local /usr/lib/cni/loopback /usr/lib/cni/ptp /usr/lib/cni/portmap /opt/cni/bin/; \
 ctr oci spec | jq '.hooks.createContainer[.hooks.createContainer | length] |= . + {"path": "/kind/bin/mount-product-files.sh"} | del(.process.rlimits)' \
   >/etc/containerd/cri-base.json
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
D
  scratch=(localhost/kind-node-base:local "${scratch[@]}")
}

preload() { # as `kind build node-image` does: run, import without unpacking, commit
  docker run -d --name "$container" --security-opt seccomp=unconfined --net none --entrypoint sleep localhost/kind-node-base:local infinity >/dev/null
  docker exec -d "$container" containerd
  docker exec -i "$container" bash -ec '
    for _ in $(seq 50); do [ -S /run/containerd/containerd.sock ] && ctr version >/dev/null 2>&1 && break; sleep 0.2; done
    ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests - >/dev/null
    kill "$(pgrep -x containerd)"; sleep 1' <"$work/images.tar"
  docker commit -c 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' "$container" "$NODE_IMAGE" >/dev/null
}
keep() {
  docker save "$NODE_IMAGE" | zstd -q -T0 -3 -f -o "$saved.part"
  mv "$saved.part" "$saved"
  echo "$NODE_IMAGE" >"$saved.name"
  rm -f "$cache"/kind-{net,node}base.tar
}

step "Debian tree of the pod network" tree kind-netbase ca-certificates,iptables,nftables,conntrack,iproute2
step "Debian tree of the node" tree kind-nodebase \
  systemd,systemd-sysv,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2,pigz,e2fsprogs,bash,ca-certificates,curl,jq,procps,containerd,runc,containernetworking-plugins
step "control plane images" control_plane
step "node tree" node_tree
step "preload and commit" preload
step "keep it in $POOLFLEET_CACHE" keep

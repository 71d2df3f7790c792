#!/bin/bash
# Builds the project's images into the local Docker daemon: hack/images.sh [clients|operator|pgbouncer|postgres …], all by
# default.
# An image carries the hash of what it was made from, so nothing is built twice. Base images are pulled where that is
# possible, else bootstrapped under the same name from the Debian archive that this machine uses.
# EXTRAS=aws adds what pyproject.toml has under that name to the operator's image.
# Prints their full names; `hack/images.sh names …` does nothing else.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$POOLFLEET_ROOT"

saved=$POOLFLEET_CACHE/images
declare -A base_of=([clients]=trixie [operator]=trixie [pgbouncer]=forky [postgres]=trixie)
declare -A tag_of=([pgbouncer]=1.26.1-1 [postgres]=17) # raise the number after the dash with every change to the image
export DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0} # docker.io 20.10 has no BuildKit; one builder everywhere
mkdir -p "$saved"

# sources NAME: the files that decide what the image holds
sources() {
  find "images/$1" -type f
  case $1 in
  clients)
    find hack/load/pgxpool -type f
    echo requirements.lock
    ;;
  operator)
    find operator -type f ! -path '*/__pycache__/*'
    echo requirements.lock
    echo pyproject.toml
    ;;
  esac
}

content() { # content NAME: hash of its sources, their names and whether they can be executed
  local files
  mapfile -t files < <(sources "$1" | LC_ALL=C sort)
  {
    sha256sum "${files[@]}"
    find "${files[@]}" -perm -u+x | LC_ALL=C sort
    [ "$1" != operator ] || [ -z "${EXTRAS:-}" ] || echo "extras $EXTRAS"
  } | sha256sum | cut -c1-12
}

image_name() { echo "poolfleet/$1:${tag_of[$1]:-c-$(content "$1")}"; }

base_image() { # base_image SUITE: makes debian:SUITE-slim exist
  local image=debian:$1-slim tar=$saved/debian-$1.tar.zst opts=()
  docker image inspect "$image" >/dev/null 2>&1 && return 0
  if [ ! -s "$tar" ]; then
    if can_pull; then
      step "docker pull $image" docker pull -q "$image"
      return 0
    fi
    need mmdebstrap zstd
    # testing's Release file has a date of expiry, and a mirror may stand still
    [ "$1" = trixie ] || opts=(--aptopt='Acquire::Check-Valid-Until "false"')
    step "mmdebstrap $1" mmdebstrap --quiet --variant=minbase --format=tar "${opts[@]}" \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' \
      --customize-hook='rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap' "$1" "$saved/base.part" "$(debian_mirror)"
    zstd -q -T0 -3 --rm -f "$saved/base.part" -o "$tar.part"
    mv "$tar.part" "$tar"
  fi
  zstd -dcq "$tar" | docker import -c 'CMD ["bash"]' -c 'LABEL poolfleet.bootstrapped=true' - "$image" >/dev/null
}

dependencies() { # the operator's, as pyproject.toml has them, with those of $EXTRAS
  python3 - <<'P'
import os
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = os.environ.get("EXTRAS", "").replace(",", " ").split()
print(*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra]), sep="\n")
P
}

wheels() { # wheels DIRECTORY: what its requirements.txt names for the container's Python and architecture, from the lock
  local arch key dir requirements=$1/requirements.txt
  case $(docker version -f '{{.Server.Arch}}') in
  amd64) arch=x86_64 ;;
  arm64) arch=aarch64 ;;
  *) die "no wheels for the architecture $(docker version -f '{{.Server.Arch}}')" ;;
  esac
  key=$({ cat "$requirements" requirements.lock; echo "$arch"; } | sha256sum | cut -c1-12)
  dir=$POOLFLEET_CACHE/wheels/$key
  if [ ! -e "$dir/.complete" ]; then
    rm -rf "$dir"
    mkdir -p "$dir"
    step "pip download (Python 3.13, $arch)" "$("$POOLFLEET_ROOT/hack/venv.sh")/bin/python" -m pip download --quiet \
      --disable-pip-version-check --only-binary=:all: --python-version 3.13 --implementation cp --abi cp313 --abi abi3 --abi none \
      --platform "manylinux_2_28_$arch" --platform "manylinux_2_17_$arch" --platform "manylinux2014_$arch" --platform any \
      --constraint requirements.lock --dest "$dir" -r "$requirements" pip
    touch "$dir/.complete"
  fi
  mkdir "$1/wheels"
  ln "$dir"/*.whl "$1/wheels/" 2>/dev/null || cp "$dir"/*.whl "$1/wheels/"
}

pgxpool() { # pgxpool PROGRAM: builds hack/load/pgxpool
  command -v go >/dev/null || die "Go is needed to build hack/load/pgxpool"
  (cd hack/load/pgxpool && CGO_ENABLED=0 GOOS=linux GOARCH=$(docker version -f '{{.Server.Arch}}') \
    go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$1" .)
}

build() { # build NAME IMAGE HASH
  local args=() context=images/$1 temporary="" log
  base_image "${base_of[$1]}"
  if docker image inspect -f '{{index .Config.Labels "poolfleet.bootstrapped"}}' "debian:${base_of[$1]}-slim" | grep -q true; then
    args=(--build-arg APT_CHECK_VALID_UNTIL=false)
  fi
  if [ "$1" = operator ] || [ "$1" = clients ]; then
    temporary=$(mktemp -d)
    context=$temporary
    if [ "$1" = operator ]; then
      dependencies >"$context/requirements.txt"
      mkdir "$context/operator"
      (cd operator && find poolfleet -type f ! -path '*/__pycache__/*' -print0 | tar -c --null -T -) | tar -x -C "$context/operator"
    else
      cp images/clients/requirements.txt "$context"
      step "go build pgxpool" pgxpool "$context/pgxpool"
    fi
    wheels "$context"
    # the same bytes give the same layer, whoever checked them out and when
    chmod -R u=rwX,go=rX "$context"
  fi
  if ! log=$(docker build -t "$2" --label "poolfleet.content=$3" "${args[@]}" -f "images/$1/Dockerfile" "$context" 2>&1); then
    printf '%s\n' "$log" | tail -n 25 >&2
    die "docker build of $2 failed"
  fi
  [ -z "$temporary" ] || rm -rf "$temporary"
}

ensure() { # ensure NAME IMAGE: the image exists and is made of what is in the checkout
  local image=$2 hash tar=$saved/$1.tar.zst
  hash=$(content "$1")
  has() { [ "$(docker image inspect -f '{{index .Config.Labels "poolfleet.content"}}' "$image" 2>/dev/null)" = "$hash" ]; }
  has && return 0
  if [ -s "$tar" ] && [ "$(cat "$tar.hash" 2>/dev/null)" = "$hash" ]; then
    load() { zstd -dcq "$tar" | docker load -q >/dev/null; }
    step "docker load $image" load
    has && return 0
  fi
  step "docker build $image" build "$1" "$image" "$hash"
  if [ "$1" != operator ]; then # its tag changes with every edit; its slow layers are the daemon's cache
    need zstd
    save() { docker save "$image" | zstd -q -T0 -3 -f -o "$tar.part" && mv "$tar.part" "$tar" && echo "$hash" >"$tar.hash"; }
    step "docker save $image" save
  else
    # the newest three are kept
    docker image ls -q --no-trunc --filter label=poolfleet.content poolfleet/operator | tail -n +4 | xargs -r docker rmi -f >/dev/null 2>&1 || true
  fi
}

names=0
if [ "${1:-}" = names ]; then
  names=1
  shift
fi
(($#)) || set -- postgres pgbouncer clients operator
for name in "$@"; do
  [ -n "${base_of[$name]:-}" ] || die "no image named $name"
  image=$(image_name "$name")
  if ((!names)); then (locked "image-$name" && ensure "$name" "$image" >&2); fi
  echo "$image"
done

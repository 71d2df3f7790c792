#!/bin/bash
# The Python environment of the tests and tools, in $POOLFLEET_CACHE/venv. Prints its path. Idempotent: it is made
# again when the dependencies, requirements.lock or the Python change. With --upgrade it writes requirements.lock. Poolfleet itself is not installed into it
# (several checkouts share it): run with PYTHONPATH=operator.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python 3.11 or newer is needed (PYTHON=…)"
venv=$POOLFLEET_CACHE/venv
cd "$POOLFLEET_ROOT"
# only what decides the content counts, so that a new lint rule does not make the environment anew
dependencies=$("$python" - <<'P'
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(*project["dependencies"], *sum(project["optional-dependencies"].values(), []), sep="\n")
P
)
stamp() { { echo "$dependencies"; cat requirements.lock; "$python" -VV; } | sha256sum | cut -c1-16; }

make_venv() { # make_venv PIP-ARGUMENT…
  rm -f "$venv/.stamp-"*
  if [ "$("$venv/bin/python" -VV 2>/dev/null)" != "$("$python" -VV)" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$python" -m venv --clear "$venv" 2>/dev/null; then
      need python3-venv # Debian ships it apart
      "$python" -m venv --clear "$venv"
    fi
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -r <(echo "$dependencies")
  touch "$venv/.stamp-$(stamp)"
}
write_lock() {
  make_venv --upgrade --upgrade-strategy eager
  {
    echo "# Exact versions that are tested and shipped in the operator's image: \`make lock\` writes this file."
    "$venv/bin/python" -m pip freeze | grep -viE '^(pip|setuptools|wheel)='
  } >requirements.lock
  touch "$venv/.stamp-$(stamp)"
}

(
  locked venv
  if [ "${1:-}" = --upgrade ]; then
    step "newest versions into requirements.lock" write_lock >&2
  elif [ ! -e "$venv/.stamp-$(stamp)" ]; then
    step "Python environment in $venv" make_venv --constraint requirements.lock >&2
  fi
)
echo "$venv"

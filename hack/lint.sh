#!/bin/bash
# Every static check, all of them even if one fails; needs hack/venv.sh.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$POOLFLEET_ROOT" || exit
bin=$POOLFLEET_CACHE/venv/bin
export PYTHONPATH=operator:.
failed=()
check() { # check NAME COMMAND…: silent where there is nothing to say
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then echo "ok: $name"; else
    failed+=("$name")
    printf '%s\n' "$output"
    echo "FAILED: $name"
  fi
}
scripts() { # every shell script of the project
  git ls-files -co --exclude-standard | while read -r f; do
    [ -f "$f" ] && head -n 1 "$f" | grep -qaE '^#!.*(bash|/sh)' && echo "$f"
  done
  echo hack/lib.sh
}
check "ruff check" "$bin/ruff" check --quiet .
check "ruff format" "$bin/ruff" format --check --quiet .
check "mypy --strict" "$bin/mypy" --no-error-summary
check "import-linter" "$bin/lint-imports" --no-logo
if "$bin/shellcheck" --version >/dev/null 2>&1; then
  mapfile -t files < <(scripts)
  check "shellcheck" "$bin/shellcheck" -x -P hack -P hack/kind -e SC2016,SC2329 "${files[@]}" # $ meant for sed or a hook; functions that step() calls
else
  echo "not checked: shell scripts (no shellcheck for this platform)"
fi
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"

#!/bin/bash
# hack/steps.sh TARGET…: runs make targets one after the other and says at the end how long each took. Stops at the first
# that fails.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$POOLFLEET_ROOT" || exit
table=() result=0 start=$EPOCHSECONDS
for target in "$@"; do
  echo "##### make $target"
  t=$EPOCHREALTIME
  "${MAKE:-make}" "$target" </dev/null || result=$?
  seconds=$(LC_ALL=C awk -v a="$t" -v b="$EPOCHREALTIME" 'BEGIN { printf "%7.1f s", b - a }')
  ((result)) && word=FAILED || word=ok
  table+=("$seconds  $target  $word")
  ((result == 0)) || break
done
echo
printf '%s\n' "${table[@]}"
echo "$((EPOCHSECONDS - start)) s altogether"
exit "$result"

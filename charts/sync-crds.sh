#!/usr/bin/env bash
# Copy the generated crds/*.yaml into the chart, byte for byte (tests/unit/test_chart.py compares them).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target="$here/poolfleet/files/crds"
mkdir -p "$target"
rm -f "$target"/*.yaml
cp "$here"/../crds/*.yaml "$target/"

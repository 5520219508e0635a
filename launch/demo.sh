#!/usr/bin/env bash
# The whole way from text to a model: mpnet_ds/programs/demo.py, in this checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python -m mpnet_ds.programs.cli demo "$@"

#!/usr/bin/env bash
# Train on this machine: ./scripts/train.sh [overrides]
#
# Sets up .venv if needed, then trains, evaluates on held-out initial states, and writes a learning curve and
# a video. Without overrides: the default experiment, a few minutes on two CPU cores.
set -euo pipefail
"$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python" -m gipo_vla.train "$@"

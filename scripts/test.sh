#!/usr/bin/env bash
# Run the checks: ./scripts/test.sh [--fast | --slow] [pytest arguments]
#
#   (nothing)   lint, types and all tests but those of several minutes
#   --fast      lint, types and the quick tests
#   --slow      everything
# With further arguments only pytest runs, with them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Where LIBERO's assets are given, its tests are to run.
./scripts/setup.sh dev ${LIBERO_ASSETS:+libero}

select='not slow'
case "${1:-}" in
    --fast) select='not medium and not slow'; shift ;;
    --slow) select=''; shift ;;
esac

export OMP_NUM_THREADS=1 WANDB_MODE=offline
if [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
fi
exec .venv/bin/python -m pytest -m "$select" --numprocesses 2 --dist worksteal "$@"

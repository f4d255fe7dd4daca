#!/usr/bin/env bash
# Train on all GPUs of this machine: ./scripts/launch_node.sh [--dry-run] [overrides]
#
#   ./scripts/launch_node.sh experiment=libero_spatial_oft7b policy.checkpoint=PATH run_dir=runs/spatial
#   ./scripts/launch_node.sh --dry-run experiment=point_reach      print what would be started, and stop
#
# One rank a GPU that CUDA_VISIBLE_DEVICES shows; RANKS=N says otherwise (N ranks on the CPU where there is no GPU). With resume=auto and a
# run_dir the same command begins a run and resumes it. A rank that dies is restarted with the others
# from the last good checkpoint, MAX_RESTARTS times (3). PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=false
if [ "${1:-}" = --dry-run ]; then
    dry_run=true
    shift
fi

# The GPUs that CUDA shows to the ranks: CUDA_VISIBLE_DEVICES up to the first -1, else all of the machine.
gpus() {
    local name count=0
    local -a names=()
    if [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
        return
    fi
    IFS=', ' read -r -a names <<<"$CUDA_VISIBLE_DEVICES"
    for name in ${names[@]+"${names[@]}"}; do
        [ "$name" != -1 ] || break
        count=$((count + 1))
    done
    echo "$count"
}

ranks=${RANKS:-$(gpus)}
[ "$ranks" -gt 0 ] || ranks=1
python=${PYTHON:-.venv/bin/python}

environment=(
    # Every attempt gets a store of its own; else ranks may wait for those that died.
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    # Seconds that ranks get to save when they are asked to stop; torchrun's own 30 are few for gigabytes.
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
    "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}"
)
command=(
    "$python" -m torch.distributed.run --standalone
    "--nproc-per-node=$ranks" "--max-restarts=${MAX_RESTARTS:-3}"
    -m gipo_vla.train "$@"
)

if [ "$dry_run" = true ]; then
    printf '%q ' env "${environment[@]}" "${command[@]}"
    printf '\n'
    exit 0
fi
if [ "$python" = .venv/bin/python ]; then ./scripts/setup.sh; fi
exec env "${environment[@]}" "${command[@]}"

#!/usr/bin/env bash
# Set up .venv in the project: ./scripts/setup.sh [extra ...]
#
# Extras are those of pyproject.toml: libero for LIBERO's simulators, dev for tests.
#
# Does everything a fresh machine needs and takes a moment when nothing has changed. PYTHON chooses the
# interpreter, for instance PYTHON=python3.12. GIPO_TORCH=cuda installs torch for CUDA also where there is no
# GPU (a login node), GIPO_TORCH=cpu the CPU build also where there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 with the venv module is needed; set PYTHON to one"
}

wanted=${GIPO_TORCH:-auto}
case "$wanted" in auto | cpu | cuda) ;; *) fail "GIPO_TORCH is $wanted: set it to cuda or cpu, or unset it" ;; esac

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

has_torch() { .venv/bin/python -c 'import torch' 2>/dev/null; }
torch_has_cuda() { .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; }

torch_is_as_wanted() {
    case "$wanted" in
        cuda) torch_has_cuda ;;
        cpu) ! torch_has_cuda ;;
        *) true ;;
    esac
}

# The CPU build of torch saves gigabytes where there is no NVIDIA GPU. It may come from a folder or index
# that pip is configured with, or from PyTorch's own index, which uv knows; PyPI's build serves everywhere.
install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    if has_torch; then
        if torch_is_as_wanted; then return; fi
        say "replacing torch by a build for $wanted"
        .venv/bin/python -m pip uninstall --quiet --yes torch
    fi
    if [ "$wanted" = cpu ] || { [ "$wanted" = auto ] && [ "$(uname -s)" = Linux ] && ! has_nvidia_gpu; }; then
        [ "$wanted" = cpu ] || say "no NVIDIA GPU here: torch for the CPU (GIPO_TORCH=cuda installs one for CUDA)"
        if .venv/bin/python -m pip install --quiet "torch==$version+cpu" 2>/dev/null; then return; fi
        .venv/bin/python -m pip install --quiet uv
        if UV_HTTP_TIMEOUT=30 .venv/bin/python -m uv pip install --quiet --python .venv/bin/python \
            --torch-backend=cpu "torch==$version" 2>/dev/null; then return; fi
        say "no CPU build of torch could be had: installing the general one (several GB)"
    fi
    .venv/bin/python -m pip install --quiet "torch==$version"
    if [ "$wanted" = cuda ] && ! torch_has_cuda; then
        fail "GIPO_TORCH=cuda, but the torch $version that pip finds has no CUDA: let pip use PyPI's build"
    fi
}

# Videos and camera observations need one OpenGL library that renders without a display.
install_gl() {
    local problem
    if problem=$(
        .venv/bin/python - 2>&1 <<'PYTHON'
import sys
from gipo_envs import UserError, gl
try:
    gl.choose()
except UserError as error:
    sys.exit(str(error))
PYTHON
    ); then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing libosmesa6 (OpenGL without a display)"
        { apt-get install -y -qq libosmesa6 || { apt-get update -qq && apt-get install -y -qq libosmesa6; }; } \
            >/dev/null 2>&1 && return
    fi
    say "note: $problem"
    say "note: without it training on state observations works; videos and camera observations do not"
}

# LIBERO's package comes without its dependencies; pyproject.toml says why. OpenCV, which robosuite imports,
# wants two libraries of the desktop's.
install_libero() {
    local problem
    .venv/bin/python -m pip install --quiet --no-deps --constraint constraints.txt hf-libero
    if ! problem=$(libero_problem) && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing libgl1 and libglib2.0-0 (OpenCV wants them)"
        { apt-get install -y -qq libgl1 libglib2.0-0 ||
            { apt-get update -qq && apt-get install -y -qq libgl1 libglib2.0-0; }; } >/dev/null 2>&1 || true
        problem=$(libero_problem) || true
    fi
    if [ -n "$problem" ]; then say "note: $problem"; fi
    if [ -z "${LIBERO_ASSETS:-}" ] && [ ! -d ~/.cache/libero/assets ]; then
        say "note: LIBERO's assets are downloaded when first needed; a folder you have goes into LIBERO_ASSETS"
    fi
}

libero_problem() {
    .venv/bin/python - 2>&1 <<'PYTHON'
import sys
from gipo_envs import UserError
from gipo_envs.libero import installation
try:
    installation.environments()
except UserError as error:
    sys.exit(str(error))
PYTHON
}

extras=$(printf '%s\n' "$@" | sort -u | paste -sd, -)
stamp=.venv/.gipo_vla
python=$(find_python)
# dev stays installed once it was: extras add up.
if [ -f "$stamp" ]; then
    extras=$(printf '%s,%s' "$extras" "$(head -n 1 "$stamp")" | tr , '\n' | sed '/^$/d' | sort -u | paste -sd, -)
fi
state=$(printf '%s\n' "$extras"; cat pyproject.toml constraints.txt scripts/setup.sh | cksum)
if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && torch_is_as_wanted; then exit 0; fi

say "setting up .venv with $python${extras:+ ($extras)}; the first time this takes a few minutes"
[ -x .venv/bin/python ] || "$python" -m venv .venv
install_torch
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
install_gl
case ",$extras," in *,libero,*) install_libero ;; esac
printf '%s\n' "$state" >"$stamp"

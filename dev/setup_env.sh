#!/usr/bin/env bash
# Make a virtual environment with this project and everything it needs; a second run does nothing.
# Usage: dev/setup_env.sh VENV [onedl|openmmlab|light]
#   onedl      the maintained continuations of OpenMMLab's packages (the default)
#   openmmlab  the original packages, as last published
#   light      torch, MMEngine, timm, pytest and ruff, for work on networks alone: nothing is compiled
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: dev/setup_env.sh VENV [onedl|openmmlab|light]}
stack=${2:-onedl}
python=${PYTHON:-python3.11}

case $stack in
    onedl)
        constraints=requirements/constraints.txt
        extra=all,analysis,export,app,docs,test-browser
        mmcv=onedl-mmcv
        ;;
    openmmlab)
        constraints=requirements/constraints-openmmlab.txt
        extra=openmmlab
        mmcv=mmcv
        ;;
    light)
        constraints=requirements/constraints.txt
        extra=light
        mmcv=
        ;;
    *)
        echo "unknown stack '$stack', expected onedl, openmmlab or light" >&2
        exit 2
        ;;
esac

say() { printf '\n== %s\n' "$*"; }

stamp=$venv/.fcvit_mm-setup
wanted=$(cat setup.cfg setup.py pyproject.toml "$constraints" dev/setup_env.sh fcvit_mm/ops/native/*.{cpp,h} | sha256sum | cut -d' ' -f1)-$PWD
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

# The header and the venv module are packages of their own on Debian.
if ! command -v "$python" >/dev/null; then
    echo "no $python found: install Python 3.11, or name another with PYTHON=" >&2
    exit 1
fi
header() { "$python" -c 'import os, sysconfig as s; print(os.path.join(s.get_path("include"), "Python.h"))'; }
ready() { "$python" -c 'import venv, ensurepip' 2>/dev/null && { [ -z "$mmcv" ] || [ -f "$(header)" ]; }; }
if ! ready; then
    packages='python3.11-venv python3.11-dev'
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing $packages (venv module and headers)"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    fi
    if ! ready; then
        echo "$python has no venv module or no headers: sudo apt-get install $packages" >&2
        exit 1
    fi
fi
[ -z "$mmcv" ] || command -v g++ >/dev/null || { echo 'no g++ found, mmcv is compiled: sudo apt-get install g++' >&2; exit 1; }

say "Environment $venv ($stack)"
if ! [ -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install -q -c "$constraints" setuptools wheel ninja psutil packaging

say 'torch and torchvision: about 2 minutes, 5 GB'
pip install -q -c "$constraints" torch torchvision numpy

built() { "$venv/bin/python" -c 'import mmcv.ops' 2>/dev/null; }
install_mmcv() { pip install -q --no-build-isolation -c "$constraints" "$@" "$mmcv" & wait_for $!; }
wait_for() {
    local seconds=0
    while kill -0 "$1" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 60)) != 0 ] || echo "   ... $((seconds / 60)) min"
    done
    wait "$1"
}
modules=fcvit_mm
if [ -n "$mmcv" ]; then
    say "mmcv, its operators compiled against this torch: about 10 minutes on 2 cores, seconds if pip kept the built wheel"
    export MAX_JOBS="${MAX_JOBS:-$(nproc)}"
    install_mmcv
    modules='fcvit_mm, mmcv.ops, mmdet, mmpretrain, mmseg'
else
    export FCVIT_MM_NATIVE=0
fi

say "This project, its dependencies and the test tools"
pip install -q --no-build-isolation -c "$constraints" -e ".[$extra,test,lint]"

# A machine without a display often lacks libGL; the headless build of OpenCV does without.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
    pip install -q --force-reinstall --no-deps -c "$constraints" opencv-python-headless
fi
# pip's cache does not know which torch a wheel of mmcv was built against.
if [ -n "$mmcv" ] && ! built; then
    say 'The cached mmcv was built against another torch: building it again'
    install_mmcv --force-reinstall --no-deps --no-cache-dir
fi
"$venv/bin/python" -c "import $modules"
pip check
printf '%s' "$wanted" >"$stamp.tmp"
mv "$stamp.tmp" "$stamp"
say "Ready: $venv"

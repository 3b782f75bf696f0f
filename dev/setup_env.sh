#!/usr/bin/env bash
# Create a virtual environment with this project and its dependencies; a second run does nothing.
# Usage: dev/setup_env.sh VENV [onedl|openmmlab|light] [all|use]
#   onedl      the maintained forks of OpenMMLab's packages (the default)
#   openmmlab  the original packages, as last published
#   light      torch, MMEngine, timm, pytest and ruff, for work on networks only: nothing is compiled
#   all        with the extras of tools (export, app, ...), and the packages of tests, lint and docs (the default)
#   use        only the packages for training, testing and visualization: `make demo` starts sooner; `all` adds the rest
# MMCV=compiled compiles mmcv's operators (10 minutes on 2 cores); MMCV=prebuilt, the default of onedl, takes them from
# torchvision's kernels (fcvit_mm/mmcv_ext). An mmcv that was compiled for this torch is kept.
# PYTHON=NAME names the interpreter; without it, python3.11, or python3 if that is of a version for which all packages exist.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: dev/setup_env.sh VENV [onedl|openmmlab|light] [all|use]}
stack=${2:-onedl}
scope=${3:-all}
versions='3.11 3.12 3.13'

case $stack in
    onedl)
        constraints=requirements/constraints.txt
        extra=all
        more=analysis,export,predict,app,docs,test-browser,test,lint
        mmcv=onedl-mmcv
        operators=${MMCV:-prebuilt}
        ;;
    openmmlab)
        constraints=requirements/constraints-openmmlab.txt
        versions=3.11
        extra=openmmlab
        more=test,lint
        mmcv=mmcv
        operators=compiled
        ;;
    light)
        constraints=requirements/constraints.txt
        extra=light
        more=test,lint
        mmcv=
        operators=prebuilt
        ;;
    *)
        echo "unknown stack '$stack', expected onedl, openmmlab or light" >&2
        exit 2
        ;;
esac

case $operators in
    prebuilt | compiled) ;;
    *)
        echo "MMCV=$operators: expected prebuilt or compiled" >&2
        exit 2
        ;;
esac

case $scope in
    all | use) ;;
    *)
        echo "unknown scope '$scope', expected all or use" >&2
        exit 2
        ;;
esac

say() { printf '\n== %s\n' "$*"; }

stamp=$venv/.fcvit_mm-setup
wanted=$(cat setup.cfg setup.py pyproject.toml "$constraints" dev/setup_env.sh fcvit_mm/ops/native/*.{cpp,h} | sha256sum | cut -d' ' -f1)-$operators-$PWD
done_before=$(cat "$stamp" 2>/dev/null || true)
case $done_before in
    "$wanted-all") exit 0 ;;
    "$wanted-use") [ "$scope" = all ] || exit 0 ;;
esac

python=${PYTHON:-python3.11}
if ! command -v "$python" >/dev/null; then
    if [ -n "${PYTHON:-}" ] || ! command -v python3 >/dev/null; then
        echo "no $python found: install Python 3.11, or name another with PYTHON=" >&2
        exit 1
    fi
    python=python3
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ -z "${PYTHON:-}" ] && [[ " $versions " != *" $version "* ]]; then
    echo "$python is Python $version, but stack '$stack' has packages for $versions: install one of these, or name it" \
        "with PYTHON=" >&2
    exit 1
fi
# On Debian, the venv module and the headers for compiling are separate packages.
header() { "$python" -c 'import os, sysconfig as s; print(os.path.join(s.get_path("include"), "Python.h"))'; }
ready() { "$python" -c 'import venv, ensurepip' 2>/dev/null && { [ "$operators" = prebuilt ] || [ -f "$(header)" ]; }; }
if ! ready; then
    packages=python$version-venv
    [ "$operators" = prebuilt ] || packages="$packages python$version-dev"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing $packages"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    fi
    if ! ready; then
        echo "$python lacks its venv module or its headers: sudo apt-get install $packages" >&2
        exit 1
    fi
fi
if [ "$operators" = compiled ] && ! command -v g++ >/dev/null; then
    echo 'no g++ found, which MMCV=compiled needs: sudo apt-get install g++' >&2
    exit 1
fi

say "Environment $venv ($stack)"
if ! [ -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# Print the state of mmcv: none, prebuilt (without compiled operators), compiled, or stale (compiled for another torch).
mmcv_state() {
    "$venv/bin/python" - <<'PYTHON'
import glob, importlib.util
spec = importlib.util.find_spec('mmcv')
libraries = glob.glob(f'{spec.submodule_search_locations[0]}/_ext*.so') if spec else []
state = 'prebuilt' if spec else 'none'
if libraries:
    import torch
    try:
        importlib.util.module_from_spec(importlib.util.spec_from_file_location('mmcv._ext', libraries[0]))
        state = 'compiled'
    except ImportError:
        state = 'stale'
print(state)
PYTHON
}
compile_mmcv() {
    # Python's default flags contain -g, which doubles the time.
    CFLAGS=-g0 CXXFLAGS=-g0 pip install -q --no-build-isolation -c "$constraints" "$@" "$mmcv" &
    wait_for $!
}
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
native=0
if [ -n "$mmcv" ]; then
    modules='fcvit_mm, mmcv.ops, mmdet, mmpretrain, mmseg'
    native=1
fi
install() {
    pip install -q -c "$constraints" setuptools wheel ninja psutil packaging

    say 'torch and torchvision: about 2 minutes, a download of 2.8 GB'
    pip install -q -c "$constraints" torch torchvision numpy

    # The CPU kernels are compiled while pip downloads and unpacks; without a compiler they are skipped.
    FCVIT_MM_NATIVE=$native "$venv/bin/python" setup.py -q build_ext --inplace >"$venv/kernels.log" 2>&1 &
    kernels=$!
    trap 'kill $kernels 2>/dev/null || true' EXIT

    if [ "$operators" = compiled ]; then
        say "mmcv, its operators compiled against this torch: 10 minutes on 2 cores, seconds if pip kept the built wheel"
        export MAX_JOBS="${MAX_JOBS:-$(nproc)}"
        case $(mmcv_state) in
            none) compile_mmcv ;;
            prebuilt | stale) compile_mmcv --force-reinstall --no-deps --no-cache-dir ;;
        esac
        # pip's cache does not record whether, and for which torch, a wheel of mmcv was compiled.
        [ "$(mmcv_state)" = compiled ] || compile_mmcv --force-reinstall --no-deps --no-cache-dir
    elif [ -n "$mmcv" ]; then
        # Built without torch, mmcv has no compiled operators. No pip cache: a wheel there may have them.
        case $(mmcv_state) in
            none) say 'mmcv without its compiled operators: torchvision provides them'
                pip install -q --no-cache-dir -c "$constraints" "$mmcv" ;;
            stale) say 'mmcv was compiled for another torch: installing it without its compiled operators'
                pip install -q --no-cache-dir --force-reinstall --no-deps -c "$constraints" "$mmcv" ;;
        esac
    fi
    say 'This project and its dependencies'
    FCVIT_MM_NATIVE=0 pip install -q --no-build-isolation -c "$constraints" -e ".[$extra]"
    if ! wait $kernels || grep '^fcvit_mm: ' "$venv/kernels.log" >&2; then
        echo "the CPU kernels were not compiled ($venv/kernels.log): everything runs without them, slower" >&2
    fi
    trap - EXIT

    # A machine without a display often lacks libGL; the headless build of OpenCV does not need it.
    if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
        pip install -q --force-reinstall --no-deps -c "$constraints" opencv-python-headless
    fi
    [ -z "$mmcv" ] || "$venv/bin/python" -m fcvit_mm.mmcv_ext install
    "$venv/bin/python" -c "import $modules"
}

if [ "$done_before" != "$wanted-use" ]; then
    install
fi
if [ "$scope" = all ]; then
    say 'Packages of tools, tests, lint and docs'
    pip install -q --no-build-isolation -c "$constraints" "fcvit_mm[$more]"
fi
pip check
printf '%s' "$wanted-$scope" >"$stamp.tmp"
mv "$stamp.tmp" "$stamp"
say "Ready: $venv"

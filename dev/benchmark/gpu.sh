#!/usr/bin/env bash
# Measure the GPU rows of docs/performance.md, one run after the other.
#
#   dev/benchmark/gpu.sh [OUT [RUN...]]
#
# OUT (default work_dirs/benchmark/gpu) gets a folder for each RUN: correct kernels eager compiled train batch1 dense
# mask_rcnn upernet. Kernels are compiled at their first launch: minutes in all, kept in Triton's cache.
# The last two need mmdet and mmseg with an mmcv built for the GPU. PYTHON names the interpreter, DEVICE the GPU (cuda).
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
configs=$tools/../../configs
python=${PYTHON:-python}
out=${1:-work_dirs/benchmark/gpu}
shift || true
[ $# -gt 0 ] || set -- correct kernels eager compiled train batch1 dense mask_rcnn upernet

common=(--device "${DEVICE:-cuda}" --dtype bfloat16)
speed() { "$python" "$tools/speed.py" --out "$out/$run" "${common[@]}" "$@"; }
step() { "$python" "$tools/dense_step.py" "$@" --out "$out/$run" "${common[@]}" --rounds 20; }

for run; do
    case $run in
    correct) (cd "$tools/../.." && "$python" -m pytest -q tests/ops tests/inference/test_cuda_graphs.py) ;;
    kernels)
        "$python" "$tools/time_kernels.py" --out "$out/$run" "${common[@]}"
        "$python" "$tools/time_kernels.py" --out "$out/$run/backward" "${common[@]}" --backward ;;
    eager)
        speed --profile --batch 128 --networks fcvit_b12_reference_best fcvit_b12 fcvit_b12_graphs \
            fcvit_b24_reference_best fcvit_b24 fcvit_b24_graphs poolformer_s24 convnext_tiny swin_tiny_patch4_window7_224 resnet50 \
            --baseline fcvit_b12_reference_best fcvit_b24_reference_best convnext_tiny ;;
    compiled)
        speed --batch 128 --networks fcvit_b12_reference_best_compiled fcvit_b12_graphs fcvit_b12_replayed \
            fcvit_b24_reference_best_compiled fcvit_b24_graphs fcvit_b24_replayed convnext_tiny_compiled convnext_tiny_replayed \
            --baseline fcvit_b12_reference_best_compiled fcvit_b24_reference_best_compiled convnext_tiny_compiled ;;
    train)
        speed --batch 128 --mode train --repeat 3 --networks fcvit_b12_reference_best fcvit_b12 fcvit_b24_reference_best \
            fcvit_b24 convnext_tiny --baseline fcvit_b12_reference_best fcvit_b24_reference_best convnext_tiny ;;
    batch1)
        speed --batch 1 --networks fcvit_b12_reference_best fcvit_b12 fcvit_b12_graphs fcvit_b24_graphs convnext_tiny \
            convnext_tiny_replayed ;;
    dense) speed --batch 1 --size 800x1216 --features --networks fcvit_b12_reference_best fcvit_b12 convnext_tiny ;;
    mask_rcnn) step "$configs/detection/mask_rcnn_fcvit_b12_coco.py" --batch 2 ;;
    upernet) step "$configs/segmentation/upernet_fcvit_b12_ade20k.py" --batch 2 ;;
    *) echo "gpu.sh: no run $run, expected correct, kernels, eager, compiled, train, batch1, dense, mask_rcnn or upernet" >&2; exit 1 ;;
    esac
done

#!/usr/bin/env bash
# Measure the CPU rows of docs/performance.md, one run after the other (an hour or so on 2 cores).
#
#   dev/benchmark/cpu.sh [OUT [RUN...]]
#
# OUT (default work_dirs/benchmark/cpu) gets a folder for each RUN: batch8 batch1 bfloat16 dense sizes train
# family mask_rcnn upernet (training steps) detector one_stage segmentor (predictions).
# PYTHON names the interpreter, SPEED_OPTIONS further options of speed.py. Leave the machine to it.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
configs=$tools/../../configs
python=${PYTHON:-python}
out=${1:-work_dirs/benchmark/cpu}
shift || true
[ $# -gt 0 ] || set -- batch8 batch1 bfloat16 dense sizes train family mask_rcnn upernet detector one_stage segmentor

# shellcheck disable=SC2086  # several options
speed() { "$python" "$tools/speed.py" --out "$out/$run" "$@" ${SPEED_OPTIONS:-}; }
step() { "$python" "$tools/dense_step.py" "$@" --out "$out/$run" --rounds 2 --warmup 1; }

whole() { "$python" "$tools/whole_models.py" "$@" --ways as_built channels_last_fused compiled optimized --threads 2 --out "$out/$run/results.json"; }

for run; do
    case $run in
    batch8)
        speed --profile --warmup 2 --networks fcvit_b12_reference fcvit_b12_reference_channels_last fcvit_b12 fcvit_b12_compiled \
            fcvit_b24 fcvit_b24_compiled poolformer_s24 poolformer_s24_compiled convnext_tiny convnext_tiny_compiled \
            swin_tiny_patch4_window7_224 resnet50 resnet50_compiled \
            --baseline fcvit_b12_reference fcvit_b12_reference_channels_last fcvit_b12 fcvit_b24 ;;
    batch1)
        speed --batch 1 --repeat 3 --warmup 2 --networks fcvit_b12_reference fcvit_b12_reference_channels_last fcvit_b12 \
            fcvit_b12_compiled fcvit_b24 fcvit_b24_compiled poolformer_s24 convnext_tiny convnext_tiny_compiled resnet50 \
            resnet50_compiled --baseline fcvit_b12_reference fcvit_b12 fcvit_b24 ;;
    bfloat16)
        speed --dtype bfloat16 --warmup 2 --networks fcvit_b12 fcvit_b12@float32 fcvit_b24 convnext_tiny \
            convnext_tiny_compiled poolformer_s24 resnet50 resnet50_compiled --baseline fcvit_b12 fcvit_b24 ;;
    dense)
        speed --batch 1 --size 800x1216 --features --rounds 7 --warmup 1 --networks fcvit_b12_reference \
            fcvit_b12_reference_channels_last fcvit_b12 poolformer_s24 convnext_tiny resnet50 resnet50_compiled \
            --baseline fcvit_b12_reference fcvit_b12 ;;
    sizes)
        "$python" "$tools/sizes.py" --out "$out/$run" --rounds 9 --warmup 1 --networks fcvit_b12 fcvit_b24 resnet50 convnext_tiny ;;
    train)
        speed --mode train --rounds 10 --warmup 1 --networks fcvit_b12_reference fcvit_b12_reference_channels_last fcvit_b12 \
            --baseline fcvit_b12_reference fcvit_b12_reference_channels_last ;;
    family)
        speed --rounds 7 --warmup 1 --networks dwnet_tiny_reference dwnet_tiny dynamic_dwnet_tiny inhomogeneous_dwnet_tiny \
            convnext_tiny swin_tiny_patch4_window7_224 --baseline dwnet_tiny_reference convnext_tiny \
            swin_tiny_patch4_window7_224 ;;
    mask_rcnn) step "$configs/detection/mask_rcnn_fcvit_b12_coco.py" --batch 1 ;;
    upernet) step "$configs/segmentation/upernet_fcvit_b12_ade20k.py" --batch 2 ;;
    detector)
        whole mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py "$configs/detection/mask_rcnn_fcvit_b12_coco.py" \
            --size 800x1216 ;;
    one_stage)
        whole mmdet::retinanet/retinanet_r50_fpn_1x_coco.py "$configs/detection/retinanet_fcvit_b12_coco.py" --size 800x1216 ;;
    segmentor)
        whole mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py \
            "$configs/segmentation/upernet_fcvit_b12_ade20k.py" --size 512x512 ;;
    *) echo "cpu.sh: no run $run, expected batch8, batch1, bfloat16, dense, sizes, train, family, mask_rcnn, upernet, detector, one_stage or segmentor" >&2; exit 1 ;;
    esac
done

#!/usr/bin/env bash
# Predict with several processes: tools/dist_predict.sh CONFIG CHECKPOINT GPUS INPUT... --out DIR [arguments of tools/predict.py]
# Without a GPU, GPUS processes run on the CPU. More than one node: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if [ $# -lt 5 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS INPUT... --out DIR [arguments of tools/predict.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
# shellcheck source=tools/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch "$gpus" "$TOOLS/predict.py" "$config" "$checkpoint" --launcher pytorch "$@"

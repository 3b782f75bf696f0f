#!/usr/bin/env bash
# Predict on a Slurm cluster: tools/slurm_predict.sh PARTITION JOB_NAME CONFIG CHECKPOINT INPUT... --out DIR
# [arguments of tools/predict.py]
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
if [ $# -lt 6 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT INPUT... --out DIR [arguments of tools/predict.py]" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
checkpoint=$4
shift 4
# shellcheck source=tools/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
srun_tool "$partition" "$job_name" "$TOOLS/predict.py" "$config" "$checkpoint" "$@"

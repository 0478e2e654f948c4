#!/bin/bash
# Train one pair of encoders per job of a Slurm array; the number of the job is the seed.
#     sbatch --array=0-7 examples/slurm_array.sh configs/simclr_cifar10.yaml [options of the script]
#SBATCH --job-name=memorization
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=runs/%x_%A_%a.log

set -eu
config=$1
shift
method=$(sed -n 's/^method: *{ *name: *\([a-z_]*\).*/\1/p' "$config")
exec .venv/bin/python "train_$method.py" --config "$config" --seeds "$SLURM_ARRAY_TASK_ID" "$@"

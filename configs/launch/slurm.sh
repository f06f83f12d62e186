#!/bin/bash
# Training on four machines of eight GPUs each. From the repository's folder, with .venv made:
#   sbatch configs/launch/slurm.sh configs/gpt2-124m.yaml run.name=wide
#   LAUNCH=srun sbatch --ntasks-per-node=8 configs/launch/slurm.sh configs/gpt2-124m.yaml
# A second sbatch of the same line goes on where the first was stopped.
#SBATCH --job-name=gpt
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -euo pipefail

HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${HOSTS%%$'\n'*}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export PATH="$PWD/.venv/bin:$PATH"

if [ "${LAUNCH:-torchrun}" = srun ]; then
    # Slurm starts every process, which reads its rank from SLURM_PROCID. Each sees all GPUs of its
    # machine, so that they reach each other directly.
    export OMP_NUM_THREADS=$((SLURM_CPUS_ON_NODE / SLURM_NTASKS_PER_NODE))
    srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task="$OMP_NUM_THREADS" \
        python train.py "$@"
else
    # Slurm starts torchrun once on each machine, and that the processes: up to three times.
    srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" torchrun \
        --nnodes="$SLURM_NNODES" --nproc-per-node=gpu --max-restarts=3 \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
        --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" \
        train.py "$@"
fi

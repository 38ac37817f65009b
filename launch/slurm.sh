#!/usr/bin/env bash
# Slurm: sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/voc_reclippp.py [ARGS]
#
# One process per node, which uses all GPUs of the node. JAX reads addresses from Slurm.
#SBATCH --job-name=clipseg_jax
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
python=${PYTHON:-.venv/bin/python}

# Two minutes before the time limit, and on preemption, Slurm sends SIGTERM: the run saves and
# exits with code 143, and the job is requeued to resume.
code=0
srun --kill-on-bad-exit=1 "$python" -m clipseg_jax.main --distributed "$@" || code=$?
if ((code != 0 && code != 2)); then # 2: invalid input, for which a restart is useless
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

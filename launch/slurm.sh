#!/usr/bin/env bash
# Slurm: sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/voc_reclippp.py \
#            --config.rectifier.batch_size=32 --config.rectifier.optim.learning_rate=0.32 \
#            --config.student.batch_size=32 --config.student.optim.learning_rate=0.02 \
#            --config.run.batch_size=32 [ARGS]
#
# One process per node, which uses all GPUs of the node; with --ntasks-per-node they share them. JAX
# reads addresses from Slurm. The published batch of 1 fits one GPU only: for 32 GPUs the learning rates
# here grow with the batch (docs/training.md, larger batches), which nobody has published numbers for.
#SBATCH --job-name=clipseg_jax
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
python=${PYTHON:-.venv/bin/python}
restarts=${RESTARTS:-20} # at most

# Two minutes before the time limit, and on preemption, Slurm sends SIGTERM: the run saves and
# exits with code 143. That, a lost process (75, 137) and a failed disk or network (74) are mended by
# a restart, which resumes; wrong input (2), Ctrl-C (130) and crashes (1) are not.
code=0
srun --kill-on-bad-exit=1 "$python" -m clipseg_jax.main --distributed "$@" || code=$?
case $code in
  74 | 75 | 137 | 143)
    if ((${SLURM_RESTART_COUNT:-0} < restarts)); then
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "error: not requeued after $restarts restarts; RESTARTS=N allows more" >&2
    fi
    ;;
esac
exit "$code"

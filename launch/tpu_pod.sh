#!/usr/bin/env bash
# A TPU VM pod slice: launch/tpu_pod.sh NAME ZONE --config=configs/voc_maskclip_plus.py \
#     --config.run.batch_size=16 [ARGS]
#
# Expects this repository, its environment (make EXTRA=tpu .venv/.done) and the weights in
# ~/clipseg_jax on every host, and a bucket or filestore mounted at the same path on all of them for
# --workdir and --config.dataset.root. JAX reads addresses from the TPU's metadata. The run ends with
# the ssh connection: start this in tmux, or with nohup.
set -euo pipefail
name=${1:?"usage: launch/tpu_pod.sh NAME ZONE --config=FILE [ARGS]"}
zone=${2:?"usage: launch/tpu_pod.sh NAME ZONE --config=FILE [ARGS]"}
shift 2
arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/clipseg_jax && .venv/bin/python -m clipseg_jax.main --distributed $arguments"

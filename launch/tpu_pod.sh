#!/usr/bin/env bash
# A TPU VM pod slice: launch/tpu_pod.sh NAME ZONE --config=configs/voc_reclippp.py [ARGS]
#
# Expects this repository, its environment (make .venv/.done, then
# .uv/bin/uv sync --locked --extra data --extra tpu) and the weights in ~/clipseg_jax on every host,
# and a bucket or filestore mounted at the same path on all of them for --workdir and
# --config.dataset.root. JAX reads addresses from the TPU's metadata.
set -euo pipefail
name=${1:?"usage: launch/tpu_pod.sh NAME ZONE --config=FILE [ARGS]"}
zone=${2:?"usage: launch/tpu_pod.sh NAME ZONE --config=FILE [ARGS]"}
shift 2
arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/clipseg_jax && .venv/bin/python -m clipseg_jax.main --distributed $arguments"

#!/usr/bin/env bash
# A TPU VM pod slice: launch/tpu_pod.sh NAME ZONE --config=configs/voc_maskclip_plus.py \
#     --workdir=gs://BUCKET/RUN --config.run.batch_size=16 [ARGS]
#
# Copies this checkout (the files that git knows, as they are now) to ~/clipseg_jax on every host, makes
# its environment there (uv, Python 3.11, the versions of uv.lock, JAX for TPUs; seconds where it is up
# to date), and starts one process a host. --workdir is gs://... or a folder that all hosts share; images are a
# shared folder or records in gs:// (docs/data.md); weights are names, downloaded on each host, or
# files at the same path. JAX reads addresses from the TPU's metadata. The run ends with the ssh
# connection: start this in tmux, or with nohup.
#
# INSTALL=0 copies and installs nothing, INSTALL=only nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: launch/tpu_pod.sh NAME ZONE --config=FILE [ARGS]"
name=${1:?"$usage"}
zone=${2:?"$usage"}
shift 2
install=${INSTALL:-1}
every=(--zone="$zone" --worker=all)

if [[ $install != 0 ]]; then
  archive=$(mktemp -t clipseg_jax.XXXXXX.tar.gz)
  trap 'rm -f "$archive"' EXIT
  git ls-files -z | tar --create --gzip --null --files-from=- --ignore-failed-read --file="$archive"
  echo "copying this checkout to every host of $name" >&2
  gcloud compute tpus tpu-vm scp "$archive" "$name:clipseg_jax.tar.gz" "${every[@]}"
  echo "installing on every host" >&2
  gcloud compute tpus tpu-vm ssh "$name" "${every[@]}" \
    --command="mkdir -p ~/clipseg_jax && tar -xzf ~/clipseg_jax.tar.gz -C ~/clipseg_jax && bash ~/clipseg_jax/launch/install.sh tpu"
fi
if [[ $install == only ]]; then exit 0; fi

arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$name" "${every[@]}" \
  --command="cd ~/clipseg_jax && .venv/bin/python -m clipseg_jax.main --distributed $arguments"

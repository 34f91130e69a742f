#!/usr/bin/env bash
# Follows what launch/tpu/run.sh started, on one worker; Ctrl-C ends it.
#
#   PROJECT=my-project ZONE=us-west4-a TPU_NAME=dynscaling \
#     launch/tpu/logs.sh [--dry-run] [WORKER]
#
# The first worker is 0, which is the default.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 0 1
need_tpu
worker=${WORDS[0]:-0}
if [[ ! $worker =~ ^[0-9]+$ ]]; then
  die "worker $worker is no number"
fi

run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--project=$PROJECT" \
  "--zone=$ZONE" "--worker=$worker" \
  "--command=tail -n +1 -F dynscaling/run.log"

#!/usr/bin/env bash
# Deletes a slice of TPUs with all that is on it, and lists what is left.
#
#   PROJECT=my-project ZONE=us-west4-a TPU_NAME=dynscaling \
#     launch/tpu/delete.sh [--dry-run]
#
# It does not ask. Fetch the results first.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 0 0
need_tpu
place=("--project=$PROJECT" "--zone=$ZONE")

run gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" \
  --force --quiet
run gcloud compute tpus queued-resources list "${place[@]}"

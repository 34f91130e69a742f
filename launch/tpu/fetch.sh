#!/usr/bin/env bash
# Copies the directory of a run from the first worker of a slice.
#
#   PROJECT=my-project ZONE=us-west4-a TPU_NAME=dynscaling \
#     launch/tpu/fetch.sh [--dry-run] runs/tpu [runs]
#
# The first word is what --workdir was, the second the directory here that is
# to hold it, by default runs.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"
words 1 2
need_tpu
into=${WORDS[1]:-runs}

run mkdir -p "$into"
run gcloud compute tpus tpu-vm scp --recurse \
  "$TPU_NAME:dynscaling/${WORDS[0]}" "$into" "--project=$PROJECT" \
  "--zone=$ZONE" --worker=0

# shellcheck shell=bash
# shellcheck disable=SC2034 # variables that the scripts read
# What the scripts beside this file share; they source it.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# The comment at the head of the script.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

# options ARGUMENTS: sets DRY_RUN, SPOT, the WORDS and those BEHIND --.
options() {
  DRY_RUN='' SPOT='' WORDS=() BEHIND=()
  while (($#)); do
    case $1 in
      --help)
        usage
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --spot)
        if [[ $(usage) != *--spot* ]]; then die "--spot is for create"; fi
        SPOT=1
        ;;
      --)
        shift
        BEHIND=("$@")
        break
        ;;
      -*) die "there is no option $1; --help lists what there is" ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
}

# words LEAST MOST: how many WORDS there may be.
words() {
  if ((${#WORDS[@]} < $1)); then die "too few words; --help shows a command"; fi
  if ((${#WORDS[@]} > $2)); then die "what is ${WORDS[$2]} for? --help shows a command"; fi
}

need_command() {
  if ((${#BEHIND[@]} == 0)); then die "give a command behind --; --help shows one"; fi
}

# need VARIABLE WHAT: it must be set.
need() {
  if [[ -z ${!1:-} ]]; then die "set $1: $2"; fi
}

need_place() {
  need PROJECT "the id of a Google Cloud project"
  need ZONE "where the TPUs are, such as us-west4-a"
}

need_tpu() {
  need_place
  need TPU_NAME "what the slice is called, such as dynscaling"
}

# The words as a shell would read them again.
quoted() {
  local word line='' plain='^[A-Za-z0-9_./:=@%+,-]+$'
  for word in "$@"; do
    if [[ ! $word =~ $plain ]]; then
      # by sed, since shells differ in what they make of quotes in ${//}
      word=\'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")\'
    fi
    line+=" $word"
  done
  printf '%s' "${line:1}"
}

# Runs a command or, in a dry run, prints it.
run() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@"
    printf '\n'
  elif command -v "$1" > /dev/null; then
    "$@"
  else
    die "$1 is not installed; docs/cloud_tpu.md says how"
  fi
}

# accelerator DEVICE: sets ACCELERATOR and RUNTIME, Google's names for a device
# of launch.plan.
accelerator() {
  if [[ ! $1 =~ ^v(5e|5p|6e)-[1-9][0-9]*$ ]]; then
    die "device $1 is not known; expected v5e, v5p or v6e with a number, as in v5e-8"
  fi
  ACCELERATOR=$1
  case $1 in
    v5e-*) ACCELERATOR=v5litepod-${1#v5e-} RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
  esac
}

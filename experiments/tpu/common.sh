# shellcheck shell=bash
# Read by the scripts beside it: their options, --dry-run, and commands on the hosts.
#
# A script sets `usage`, where each option is a line of its own, "  --name NAME  text" or,
# if it takes no value, "  --yes  text", and for each a variable with its default. It runs
# everything through `run`, so that --dry-run prints what would run.

set -euo pipefail

dry_run='' name='' zone='' project=''
rest=()      # what came after --
here=$PWD    # where relative paths of the command line start
me=${0##*/}
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."  # the repository

: "${usage:?}"

fail() {
  printf '%s: %s\n' "$me" "$1" >&2
  exit 2
}

# Sets the variable of every option of `usage` that the command line names.
parse() {
  local option value
  while (($#)); do
    option=${1%%=*}
    case $1 in
      --)
        shift
        rest=("$@")
        return
        ;;
      --help | -h)
        printf '%s\n  --dry-run  print the commands, one a line, and run none\n' "$usage"
        exit
        ;;
      --dry-run)
        dry_run=yes
        shift
        continue
        ;;
    esac
    if [[ $1 == --[a-z]* && $usage == *$'\n'"  $option "[A-Z]* ]]; then
      if [[ $1 == *=* ]]; then
        value=${1#*=}
      elif (($# > 1)) && [[ $2 != -* ]]; then
        value=$2
        shift
      else
        value=''
      fi
      [[ -n $value ]] || fail "$option wants a value; --help says which"
    elif [[ $1 == --[a-z]* && $usage == *$'\n'"  $1  "* ]]; then
      value=yes
    else
      fail "there is no option '$1'; --help lists them, and a command follows --"
    fi
    option=${option#--}
    printf -v "${option//-/_}" %s "$value"
    shift
  done
}

# Ends the script unless each of these options has a value.
need() {
  local option variable missing=''
  for option; do
    variable=${option//-/_}
    [[ -n ${!variable} ]] || missing+="${missing:+, }--$option"
  done
  [[ -z $missing ]] || fail "missing $missing; --help says more"
}

# The same for the command after --.
need_command() {
  ((${#rest[@]})) || fail "missing the command, after --; --help shows one"
}

# The same for a program, which a dry run can do without.
need_program() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || fail "$1 is not installed: $2"
}

# Checks what every script for TPUs needs, and sets `where`.
need_tpu() {
  case $name in
    -* | */* | *:*) fail "'$name' is no name of a TPU" ;;
  esac
  need_program gcloud 'https://cloud.google.com/sdk/docs/install'
  where=("--zone=$zone")
  [[ -z $project ]] || where+=("--project=$project")
}

# `python -m MODULE` in `rest` becomes `python -m experiments.tpu.launch MODULE`.
through_launcher() {
  local launcher=experiments.tpu.launch
  if [[ ${rest[0]} == python && ${rest[1]-} == -m && ${rest[2]-} != "$launcher" ]]; then
    rest=(python -m "$launcher" "${rest[@]:2}")
  fi
}

# A path of the command line, as seen from the repository.
path() {
  case $1 in
    /*) printf %s "$1" ;;
    *) printf %s "$here/$1" ;;
  esac
}

# One line that a shell reads back as these words.
quote() {
  local word left mark="'" line=''
  for word; do
    case $word in
      *[!A-Za-z0-9_@%+=:,./-]* | '')
        left=$word
        word=''
        while [[ $left == *"$mark"* ]]; do
          word+=${left%%"$mark"*}"'\"'\"'"
          left=${left#*"$mark"}
        done
        word="'$word$left'"
        ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  if [[ -n $dry_run ]]; then
    quote "$@"
  else
    printf '+ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

tpu() {
  run gcloud compute tpus tpu-vm "$@"
}

# Runs a shell command on one host, or on all at once.
on_host() {
  tpu ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

#!/usr/bin/env bash
# From PyTorch weights and annotated clips to a Tora2 checkpoint, a video of it and PyTorch weights.
usage() {
  cat <<'END'
scripts/clips_to_checkpoint.sh --cogvideox DIR --tora PATH --dinov2 DIR --arcface FILE --reid FILE
    --clips DIR --out DIR [--face-models DIR] [--request FILE] [--config FILE]
    [--sample-options "OPTIONS"] [-- TRAINING FLAGS]

  --cogvideox DIR     CogVideoX, as diffusers saves it
  --tora PATH         Tora on it: mp_rank_00_model_states.pt (SAT), or a folder of its diffusers version
  --dinov2 DIR        DINOv2, as transformers saves it
  --arcface FILE      glintr100.onnx of insightface, or backbone.pth of arcface_torch
  --reid FILE         ResNet for objects (torchvision, torchreid, fast-reid, reid-strong-baseline)
  --clips DIR         clips whose entities are annotated (docs/entity_clips.md)
  --out DIR           where everything goes; made if needed
  --face-models DIR   insightface's antelopev2 or buffalo_l; needed if clips or request show humans
  --request FILE      what to sample in the end (docs/request.md); left out: nothing
  --config FILE       of configs/; default configs/tora2_5b.py
  --sample-options    of scripts/sample.py, as "--dtype bfloat16 --vae-memory tiled"
  TRAINING FLAGS      as --config.mesh.fsdp=8 --config.steps=1000

The same command again goes on where it was. docs/clips_to_checkpoint.md says more.
Exit codes: 0 all is done; 2 something has to be changed; 75 it was asked to stop (SIGTERM, Ctrl-C,
a closed terminal); anything else: a command failed, training three times without a new checkpoint.
END
}
set -euo pipefail

fail() {
  printf '%s\n' "$@" >&2
  exit 2
}

absolute() { # a path that still holds after cd
  case "$1" in
    '' | /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}

cogvideox='' tora='' dinov2='' arcface='' reid='' clips='' out='' face_models='' request=''
config='' sample_options=''
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    --cogvideox | --tora | --dinov2 | --arcface | --reid | --clips | --out | --face-models | \
      --request | --config)
      [ $# -gt 1 ] || fail "$1: names nothing"
      case "$2" in
        [A-Za-z]*:/*)
          fail "$1: $2 is an address, not a local path;" \
            "mount the bucket, or copy the files, and name the folder"
          ;;
      esac
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$(absolute "$2")"
      shift 2
      ;;
    --sample-options)
      [ $# -gt 1 ] || fail "$1: names nothing"
      sample_options=$2
      shift 2
      ;;
    *) fail "$1: is no option; flags of the training follow --" "$(usage)" ;;
  esac
done

python=${PYTHON:-python} compiled=${JAX_COMPILATION_CACHE_DIR:-$out/compiled}
case "$python" in */*) python=$(absolute "$python") ;; esac
case "$compiled" in *://*) ;; *) compiled=$(absolute "$compiled") ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=${config:-configs/tora2_5b.py}
weights=$out/weights run=$out/run

problems=()
for name in cogvideox tora dinov2 arcface reid; do
  # What has been converted is not needed again.
  [ -n "$out" ] && [ -d "$weights/$name" ] && continue
  [ "$name" = cogvideox ] && [ -n "$out" ] && [ -d "$weights/tora" ] && continue
  [ -n "${!name}" ] || problems+=("--$name: is needed")
  [ -z "${!name}" ] || [ -e "${!name}" ] || problems+=("--$name: ${!name} is not there")
done
[ -n "$out" ] || problems+=("--out: is needed")
[ -n "$clips" ] || problems+=("--clips: is needed")
[ -z "$clips" ] || [ -d "$clips" ] || problems+=("--clips: there is no folder $clips")
[ -z "$face_models" ] || [ -e "$face_models" ] || problems+=("--face-models: $face_models is not there")
[ -z "$request" ] || [ -f "$request" ] || problems+=("--request: there is no file $request")
[ -f "$config" ] || problems+=("--config: there is no file $config")
command -v "$python" >/dev/null || problems+=("PYTHON: there is no program $python")
[ ${#problems[@]} -eq 0 ] || fail "cannot start:" "${problems[@]/#/  }" "--help lists the options"

mkdir -p "$out" || exit 2
# What is compiled once serves every later start.
export JAX_COMPILATION_CACHE_DIR=$compiled

say() { printf '\n== %s\n' "$*"; }

child='' stopped=''
stop() {
  stopped=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT HUP

life() { # runs a command to its end; its exit code is in `code`
  set -m # a process group of its own: Ctrl-C reaches this script, which passes it on once
  "$@" &
  child=$!
  set +m
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || true
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, not the command
    code=0
    wait "$child" || code=$?
  done
  child=''
}

run_once() { # a command after whose failure nothing can follow
  life "$@"
  [ -z "$stopped" ] || exit 75
  [ "$code" -eq 0 ] || exit "$code"
}

convert() { # NAME COMMAND SOURCE ...
  local name=$1 command=$2 source=$3
  shift 3
  [ ! -d "$weights/$name" ] || return 0
  say "converts $source"
  run_once "$python" -m convert "$command" --src "$source" --dst "$weights/$name" "$@"
}

[ -d "$weights/tora" ] || convert cogvideox cogvideox "$cogvideox"
convert tora tora "$tora" --base "$weights/cogvideox"
convert dinov2 dinov2 "$dinov2"
convert arcface arcface "$arcface"
convert reid reid "$reid"

training=(
  "$python" -m tora2_jax.train "--config=$config:$weights/tora" "--workdir=$run"
  "--config.clips.folder=$clips" "--config.cache_dir=$out/cache" "--config.export=$out/trained"
)
[ -z "$face_models" ] || training+=("--config.face_models=$face_models")

last_step() { # of the newest whole checkpoint; 0 if there is none
  local path step last=0
  for path in "$run"/checkpoints/*; do
    step=${path##*/}
    case "$step" in '' | *[!0-9]*) continue ;; esac
    [ "$step" -le "$last" ] || last=$step
  done
  echo "$last"
}

say "trains in $run"
fruitless=0
while [ -z "$stopped" ]; do
  before=$(last_step)
  life "${training[@]}" "$@"
  [ "$code" -ne 0 ] || break
  [ "$code" -ne 2 ] || exit 2
  [ -z "$stopped" ] || break
  fruitless=$((fruitless + 1))
  [ "$(last_step)" -eq "$before" ] || fruitless=0
  if [ "$fruitless" -ge 3 ]; then
    echo "training failed three times without a new checkpoint, last with code $code" >&2
    exit "$code"
  fi
  say "training ended with code $code after step $(last_step) was saved; it starts again"
  sleep 5
done
[ -z "$stopped" ] || exit 75

step=$(last_step)
checkpoint=$out/checkpoint_$step video=$out/video_$step.mp4 back=$out/diffusers_$step
if [ ! -d "$checkpoint" ]; then
  say "makes one folder of everything"
  run_once "$python" -m convert bundle --config "$run/config.json" --dst "$checkpoint"
fi
if [ -n "$request" ] && [ ! -f "$video" ]; then
  say "samples $request"
  # shellcheck disable=SC2206 # several words are meant
  options=($sample_options)
  [ -z "$face_models" ] || options+=(--face-models "$face_models")
  run_once "$python" scripts/sample.py --checkpoint "$checkpoint" --request "$request" --output "$video" \
    ${options[@]+"${options[@]}"}
fi
if [ ! -d "$back" ]; then
  say "exports to diffusers"
  run_once "$python" -m convert export --src "$checkpoint" --dst "$back" --accept-differences
fi
say "all steps are done: $step"

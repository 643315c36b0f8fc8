#!/usr/bin/env bash
# Go on with the campaign for some minutes on a machine with a GPU, without internet and without installation.
#
#     recipes/gpu.sh pack                    # here: speech and the wheels that the other machine lacks, into runs/gpu-pack
#     recipes/gpu.sh train MINUTES STATE     # there, in the checkout, with runs/gpu-pack beside: the state that comes back
#     flasepformer unpack STATE runs/campaign --recipe recipes/campaign-fine.yaml    # here: the CPU goes on from it
#
# RECIPE=..., FROM=..., SPEECH_MB=... change what is trained, from which state, and how much speech is taken along.
set -euo pipefail
cd "$(dirname "$0")/.."
recipe=${RECIPE:-recipes/campaign-gpu.yaml} from=${FROM:-docs/campaign} pack=runs/gpu-pack
case "${1:-}" in
pack)
    rm -rf "$pack"
    "${PYTHON:-python3}" -c "
import sys
from flasepformer.training import load_recipe, pack_speech
packed = pack_speech(load_recipe(sys.argv[1]), sys.argv[2], max_bytes=int(float(sys.argv[3]) * 1e6))
print(f'{packed.train_hours:.2f} h to train on, {packed.left_out_hours:.2f} h left out, {packed.n_bytes / 1e6:.1f} MB')
" "$recipe" "$pack/speech" "${SPEECH_MB:-30}"
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        -c constraints.txt --dest "$pack/wheels" soundfile cffi pycparser soxr
    du -sh "$pack"
    ;;
train)
    minutes=$2 state=$3 run=runs/gpu
    export PYTHONPATH="$PWD/src:$PWD/$pack/site${PYTHONPATH:+:$PYTHONPATH}"
    if [ -d "$pack/wheels" ]; then
        python3 -m pip install --quiet --no-index --no-deps --target "$pack/site" "$pack"/wheels/*.whl
    fi
    noise=()
    for folder in "$pack"/speech/noise/*/; do
        if [ -d "$folder" ]; then noise+=(--noise "$folder"); fi
    done
    python3 -m flasepformer unpack "$from" "$run" --recipe "$recipe"
    # SIGTERM ends a run after the step under way, with a checkpoint and code 130, which `timeout` hands on
    timeout --preserve-status --signal TERM --kill-after 60 "$(awk "BEGIN {print 60 * $minutes}")" \
        python3 -m flasepformer train "$recipe" --speech "$pack/speech/MANIFEST.csv" "${noise[@]}" \
        --out "$run" --resume || [ $? = 130 ]
    python3 -m flasepformer pack "$run" "$state"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

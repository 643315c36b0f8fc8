#!/bin/sh
# Long conversations of two unseen speakers, in one pass over the whole and in overlapping chunks: what does a
# model gain, and how long is a talker in the wrong track? From a checkout, with the extras evaluation and data:
#
#     sh benchmarks/conversations.sh [MODEL]
#
# LENGTHS lists minutes:count; JOBS processes work at a time; SPEECH is a manifest or a folder with a split test;
# WORK keeps the conversations and all scores (about 0.8 GB), which else are removed; OUT receives the tables.
set -eu
model=${1:-default}
speech=${SPEECH:-../shared/speech/MANIFEST.csv}
lengths=${LENGTHS:-1:10 2:10 5:10 10:6 60:3}
jobs=${JOBS:-$(nproc)}
out=${OUT:-benchmarks/results/conversations}
if [ -z "${WORK:-}" ]; then
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    trap 'exit 130' INT TERM
fi
PATH=$PWD/.venv/bin:$PATH

for length in $lengths; do
    minutes=${length%:*}
    flasepformer mixtures "$speech" --split test --kind conversations --minutes "$minutes" \
        --count "${length#*:}" --workers "$jobs" --out "$WORK/sets/$minutes"
    sdr=--sdr
    [ "${minutes%.*}" -le 10 ] || sdr=--no-sdr # its spectra of an hour would take gigabytes
    for mode in whole chunks; do
        flasepformer evaluate "$model" "$WORK/sets/$minutes/mix_clean.csv" --mode "$mode" --metrics confusion \
            $sdr --jobs "$jobs" --out "$WORK/scores/$minutes/$mode" --overwrite
    done
done
python benchmarks/conversations.py "$WORK" "$out" "LENGTHS=\"$lengths\" sh benchmarks/conversations.sh $model"

#!/bin/sh
# Every CPU table of docs/benchmarks.md, on an otherwise idle machine: REPEATS=3 THREADS=2 sh benchmarks/cpu.sh
# The peers join in if they are installed: PEERS=all sh benchmarks/cpu.sh (see docs/benchmarks.md).
set -eu
threads=${THREADS:-$(nproc)}
repeats=${REPEATS:-3}
out=${OUT:-benchmarks/results/cpu}
peers=${PEERS:-}

run() { # NAME, then the options that differ
    name=$1
    shift
    flasepformer benchmark "$@" --threads "$threads" --repeats "$repeats" --out "$out/$name" --overwrite
}

run length fla-sepreformer-t fla-sepreformer-b fla-sepreformer-l default \
    fla-tflocoformer-s fla-tflocoformer-m --lengths 4,16,30,60 ${peers:+--peers "$peers"}
run bf16 fla-sepreformer-t fla-sepreformer-b fla-sepreformer-l --lengths 4,16,30 --precision bfloat16
run paper --paper
run long fla-sepreformer-t default --lengths 60,300,600 --time-limit 1800

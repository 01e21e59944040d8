#!/usr/bin/env bash
# Where the time goes: for each workload the share of the compute threads' time by function (perf, by the clock), and the instructions,
# the lines that miss the nearest cache and those that miss the last one (cachegrind, which simulates them).
#
#   benches/profiles/profile.sh target/release/firebrick OUT
#
# Needs perf, valgrind, and the models that `firebrick bench` has made. Cachegrind takes minutes for each, more than ten for training, and
# knows no AVX-512: set FIREBRICK_CPU=avx2 where the processor has it.
set -euo pipefail
firebrick=$1 out=$2
models=${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/bench-models
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
for count in 10 2000; do
    for text in $(seq "$count"); do echo "$(seq -s ' ' "$text" $((text + 9)))"; done > "$scratch/texts-$count"
done
# A row that is cut to the tokens asked for.
mkdir "$scratch/rows"
echo "{\"text\": \"$(seq -s ' ' 1000)\"}" > "$scratch/rows/train.jsonl"

# The arguments with a number for `%`, and as many token ids for `@%`.
arguments() {
    local number=$1 argument
    shift
    for argument in "$@"; do
        [ "$argument" = "@%" ] && seq -s, 1 "$number" || echo "${argument//%/$number}"
    done
}

# run NAME TIMES FEW COMMAND…: FEW and TIMES are how much of it cachegrind and perf see.
run() {
    local name=$1 times=$2 few=$3
    shift 3
    echo "$tool $name" >&2
    "$tool" "$@" || { cat "$scratch/log" >&2; exit 1; }
}

time_by_function() {
    perf record -q -F 999 -o "$scratch/perf" -- "$firebrick" $(arguments "$times" "$@") > /dev/null 2> "$scratch/log" || return 1
    {
        echo "$name: share of the compute threads' time by function"
        # The first thread loads and chooses tokens; the others compute.
        perf script -i "$scratch/perf" -F pid,tid,ip,sym 2> /dev/null | awk '
            { split($1, id, "/"); if (id[1] == id[2]) next; $1 = $2 = ""; sub(/^ +/, ""); count[$0]++; all++ }
            END { for (name in count) if (count[name] > all / 200) printf "%5.1f %%  %s\n", 100 * count[name] / all, name }' | sort -rn
        echo
    } > "$out/$name.txt"
}

instructions_by_function() {
    valgrind --tool=cachegrind --cache-sim=yes --cachegrind-out-file="$scratch/grind" \
        "$firebrick" $(arguments "$few" "$@") > /dev/null 2> "$scratch/log" || return 1
    {
        echo "$name, $few instead of $times: instructions, lines missed in the nearest cache, lines missed in the last, by function"
        cg_annotate --show=Ir,D1mr,D1mw,DLmr,DLmw "$scratch/grind" | awk '
            function number(text) { gsub(/[,]/, "", text); return text + 0 }
            /^-- Auto-annotated/ { exit }
            /^--/ { next }
            / \?\?\?:|:[a-zA-Z_<]/ && /%\)/ {
                line = $0; gsub(/\([^)]*%\)/, "", line); n = split(line, field, " ")
                name = ""; for (at = 6; at <= n; at++) name = name " " field[at]
                sub(/^ [^:]*:/, "", name)
                # With line tables a function has a line for each file that was inlined into it.
                all[name] += number(field[1]); near[name] += number(field[2]) + number(field[3]); last[name] += number(field[4]) + number(field[5])
            }
            END { for (name in all) printf "%15.0f %12.0f %12.0f  %s\n", all[name], near[name], last[name], name }' |
            sort -rn | awk 'NR <= 16'
    } >> "$out/$name.txt"
}

embed() { run "embed-$1" 2000 10 embed --model "$models/e5" --dtype "$1" --input "$scratch/texts-%"; }
decode() { run "decode-$1$2" 100 3 generate --model "$models/qwen" --dtype "$1" --tokens 1,2,3 --temperature 0 --max-tokens % "${@:3}"; }
prefill() { run "prefill-$1" 512 64 generate --model "$models/qwen" --dtype "$1" --tokens @% --temperature 0 --max-tokens 1; }
train() {
    run train-f32 512 16 train --model "$models/qwen" --dtype f32 --data "$scratch/rows" --output "$scratch/adapter-%" --over-long truncate \
        --max-seq-len % --batch-size 1 --steps 1
}
# What can be disturbed by other work first.
for tool in time_by_function instructions_by_function; do
    embed f32
    embed q8
    decode f32 ""
    decode f16 ""
    decode f16 "-1-thread" --threads 1
    decode q8 ""
    prefill f32
    prefill q8
    train
done

#!/usr/bin/env bash
# Runs the tests of `make test`: first what needs no engine, in two processes; then, in one, what shares an engine and
# what measures time. With --slow those of `make test-slow`, in one process. A few tests that fail are run once more, by
# themselves: what passes then was outrun by a busy machine, is named at the end, and wants mending too. Fails where a
# test fails twice, or where nothing at all was run.
#
#   deploy/run_tests.sh PYTHON [--slow] [ARGUMENT OF PYTEST…]
set -uo pipefail
python=$1
shift
here="not gpu and not slow and not clients and not cluster"
failed=1
interrupted=2
nothing_run=5
most_run_again=12
kept=$(mktemp -d)
trap 'rm -rf "$kept"' EXIT
failed_once=()

# part NAME MARKERS [ARGUMENT…]: one run, and of a few failures a second one; its exit status is the part's.
part() {
    local cache=$kept/$1 markers=$2
    shift 2
    "$python" -m pytest -o cache_dir="$cache" -m "$markers" "$@" "${given[@]}"
    local status=$? names=()
    if [ $status -ne $failed ]; then return $status; fi
    mapfile -t names < <("$python" -c 'import json, sys; print("\n".join(json.load(open(sys.argv[1]))))' \
        "$cache/v/cache/lastfailed")
    if [ ${#names[@]} -gt $most_run_again ]; then return $status; fi
    # What is no test, such as a process that collected others, would have all of them run again.
    for name in "${names[@]}"; do if [[ $name != *::* ]]; then return $status; fi; done
    echo "Run once more, alone: ${names[*]}"
    "$python" -m pytest -o cache_dir="$cache" -m "$markers" --last-failed --last-failed-no-failures none "${given[@]}"
    status=$?
    if [ $status -eq 0 ]; then failed_once+=("${names[@]}"); fi
    return $status
}

told() { if [ ${#failed_once[@]} -gt 0 ]; then printf 'Failed once, and passed alone: %s\n' "${failed_once[@]}"; fi; }

if [ "${1:-}" = --slow ]; then
    given=("${@:2}")
    part slow "slow and not gpu"
    status=$?
    told
    exit $status
fi
given=("$@")
part quick "$here and not e2e and not alone" -n 2 --dist loadfile --no-loadscope-reorder
first=$?
if [ $first -eq $interrupted ]; then exit $first; fi
part engine "$here and (e2e or alone)"
second=$?

told
for status in $first $second; do
    if [ $status -ne 0 ] && [ $status -ne $nothing_run ]; then
        echo "Of the tests without an engine the exit status is $first, of those with one $second."
        exit $status
    fi
done
if [ $first -eq $nothing_run ] && [ $second -eq $nothing_run ]; then exit $nothing_run; fi

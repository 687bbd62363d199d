#!/usr/bin/env bash
# Runs the tests of `make test`: first what needs no engine, in two processes; then, in one, what shares an engine and
# what measures time. Fails where either fails, or where nothing at all was run.
#
#   deploy/run_tests.sh PYTHON [ARGUMENT OF PYTEST…]
set -uo pipefail
python=$1
shift
here="not gpu and not slow and not clients"
interrupted=2
nothing_run=5

"$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "$here and not e2e and not alone" "$@"
first=$?
if [ $first -eq $interrupted ]; then exit $first; fi
"$python" -m pytest -m "$here and (e2e or alone)" "$@"
second=$?

for status in $first $second; do
    if [ $status -ne 0 ] && [ $status -ne $nothing_run ]; then exit $status; fi
done
if [ $first -eq $nothing_run ] && [ $second -eq $nothing_run ]; then exit $nothing_run; fi

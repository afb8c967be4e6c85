#!/usr/bin/env bash
# Runs the Rust tests named in FLASHPACK_TESTS under valgrind's memcheck and helgrind, with a few cases of each property:
# PROPTEST_CASES (default 4). What the suppressions leave out they say themselves.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v valgrind >/dev/null || { echo 'valgrind is missing: install it (Debian: apt-get install valgrind)' >&2; exit 1; }
export PROPTEST_CASES="${PROPTEST_CASES:-4}"
# Each test program's path, by the name of the test.
programs=$(cargo test --features cuda --no-run --message-format=json 2>/dev/null |
    sed -nE 's/.*"kind":\["test"\].*"name":"([a-z_]+)".*"executable":"([^"]+)".*/\1 \2/p')
for test in $FLASHPACK_TESTS; do
    program=$(awk -v test="$test" '$1 == test { print $2 }' <<<"$programs")
    for tool in memcheck helgrind; do
        options=(--tool="$tool" --error-exitcode=9 --quiet "--suppressions=tests/valgrind/$tool.supp" --fair-sched=try)
        [ "$tool" = helgrind ] || options+=(--leak-check=full --errors-for-leak-kinds=definite,indirect)
        echo "valgrind --tool=$tool: $test"
        valgrind "${options[@]}" "$program" --test-threads=1 --quiet
    done
done

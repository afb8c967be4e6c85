#!/usr/bin/env bash
# Runs the Rust tests named as arguments under valgrind's memcheck, with PROPTEST_CASES (4) cases of each property.
# Nothing is suppressed; "possibly lost" is not counted, because threads of the test harness that are never joined are.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo 'install valgrind (Debian: apt-get install valgrind)' >&2; exit 1; }
export PROPTEST_CASES="${PROPTEST_CASES:-4}"
# A line for each test program: its name, its path.
programs=$(cargo test --features cuda --no-run --message-format=json |
    sed -nE 's/.*"kind":\["test"\].*"name":"([a-z_]+)".*"executable":"([^"]+)".*/\1 \2/p')
for test in "$@"; do
    program=$(awk -v test="$test" '$1 == test { print $2 }' <<<"$programs")
    echo "memcheck: $test"
    valgrind --quiet --error-exitcode=9 --fair-sched=try --leak-check=full --show-leak-kinds=definite,indirect \
        --errors-for-leak-kinds=definite,indirect "${program:?no such test: $test}" --test-threads=1 --quiet
done

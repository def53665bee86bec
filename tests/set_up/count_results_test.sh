#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# count_results.sh on reports as ctest 3.25 and GoogleTest 1.12 write them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

ctest_report() { # "NAME STATUS"...
  printf '<?xml version="1.0"?>\n<testsuite name="(empty)" tests="%s">\n' $#
  local row
  for row in "$@"; do
    printf '\t<testcase name="%s" classname="x" time="0.1" status="%s">\n\t\t<system-out/>\n\t</testcase>\n' "${row% *}" "${row#* }"
  done
  echo '</testsuite>'
}

gtest_report() { # PASSED FAILED SKIPPED
  printf '<?xml version="1.0"?>\n<testsuites tests="%s" failures="%s" disabled="0" errors="0" time="0." name="AllTests">\n' \
    $(($1 + $2 + $3)) "$2"
  printf '<testsuite name="A" tests="%s" failures="%s" disabled="0" skipped="%s" errors="0">\n' $(($1 + $2 + $3)) "$2" "$3"
  local i
  for ((i = 0; i < $1 + $2; ++i)); do echo '<testcase name="T" status="run" result="completed" time="0.">'; done
  for ((i = 0; i < $3; ++i)); do echo '<testcase name="T" status="run" result="skipped" time="0."><skipped/>'; done
  echo '</testsuite></testsuites>'
}

expect() { # EXIT_STATUS LINE
  local status=0 line
  line=$("$here/count_results.sh" "$folder") || status=$?
  [ "$status" -eq "$1" ] || { echo "exit status $status, expected $1"; exit 1; }
  [ "${line##*$'\n'}" = "$2" ] || { echo "'$line', expected '$2'"; exit 1; }
}

gtest_report 5 0 2 >"$folder/kernels.0.xml"
ctest_report 'kernels.0 run' 'layering run' 'other notrun' >"$folder/ctest.xml"
expect 0 '6 passed, 0 failed, 3 skipped'

gtest_report 4 1 2 >"$folder/kernels.0.xml"
ctest_report 'kernels.0 fail' 'layering fail' >"$folder/ctest.xml"
expect 1 '4 passed, 2 failed, 2 skipped'

# Crashed before it wrote a report; then: clean report, but the process failed.
ctest_report 'kernels.0 run' 'io.0 fail' >"$folder/ctest.xml"
gtest_report 3 0 0 >"$folder/kernels.0.xml"
expect 1 '3 passed, 1 failed, 0 skipped'
gtest_report 3 0 0 >"$folder/io.0.xml"
expect 1 '6 passed, 1 failed, 0 skipped'

ctest_report >"$folder/ctest.xml"
expect 1 '0 passed, 0 failed, 0 skipped'

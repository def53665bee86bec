#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Adds up one run of ctest: count_results.sh FOLDER, which holds ctest.xml (its JUnit report) and, from each GoogleTest
# program that ctest started, NAME.xml. Ends with the line that CI reads; exit status 1 if anything failed or nothing ran.
set -euo pipefail
cd "$1"

passed=0 failed=0 skipped=0
names=()
while IFS=$'\t' read -r name status; do
  if [ -f "$name.xml" ]; then
    failures=$(sed -nE '0,/<testsuites/s/.*<testsuites .*failures="([0-9]+)".*/\1/p' "$name.xml")
    ran=$(grep -c 'result="completed"' "$name.xml" || true)
    skips=$(grep -c 'result="skipped"' "$name.xml" || true)
    # A program that wrote a clean report and failed all the same (a sanitizer, a crash at exit) is one failure.
    if [ "$status" = fail ] && [ "$failures" -eq 0 ]; then failures=1 ran=$((ran + 1)); fi
    passed=$((passed + (ran > failures ? ran - failures : 0))) failed=$((failed + failures)) skipped=$((skipped + skips))
    if [ "$failures" -ne 0 ]; then names+=("$name"); fi
  else
    case "$status" in
      run) passed=$((passed + 1)) ;;
      notrun | disabled) skipped=$((skipped + 1)) ;;
      *) failed=$((failed + 1)) names+=("$name") ;;
    esac
  fi
done < <(sed -nE 's/.*<testcase name="([^"]*)".* status="([a-z]*)".*/\1\t\2/p' ctest.xml)

[ ${#names[@]} -eq 0 ] || echo "failed in: ${names[*]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

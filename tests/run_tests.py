"""Runs CTest and counts every case inside the test programs.

usage: run_tests.py BUILD_DIR [ctest arguments]

The last line is `N passed, N failed, N skipped`; the exit code is 1 when
anything failed or nothing ran.  A program that reports no counts of its own
(neither cmocka's lines nor `N passed, N failed[, N skipped]`) counts as one.
"""
import os
import re
import subprocess
import sys

CMOCKA = re.compile(r"^\d+: \[  (PASSED|FAILED|SKIPPED) ?\s*\] (\d+) test\(s\)", re.M)
PLAIN = re.compile(r"^\d+: (\d+) passed, (\d+) failed(?:, (\d+) skipped)?\s*$", re.M)
RESULT = re.compile(r"Test\s+#(\d+): (\S+) \.*\s*(\**)(Passed|Failed|Skipped|Not Run|Timeout|"
                    r"Exception|Subprocess aborted)", re.M)


def counts_of(output, result):
    """(passed, failed, skipped) of one program from its verbose output."""
    passed = failed = skipped = 0
    plain = PLAIN.findall(output)
    cmocka = CMOCKA.findall(output)
    if plain:
        passed, failed = int(plain[-1][0]), int(plain[-1][1])
        skipped = int(plain[-1][2] or 0)
    elif cmocka:
        for kind, number in cmocka:
            if kind == "PASSED":
                passed += int(number)
            elif kind == "FAILED":
                failed += int(number)
            else:
                skipped += int(number)
    elif result == "Passed":
        passed = 1
    elif result == "Skipped":
        skipped = 1
    if result not in ("Passed", "Skipped") and failed == 0:
        failed = 1  # it crashed, hung or exited non-zero after its last count
    return passed, failed, skipped


def main():
    build = sys.argv[1]
    command = ["ctest", "--test-dir", build, "-V", "--no-tests=error"] + sys.argv[2:]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         errors="replace", check=False)
    log = os.path.join(build, "tests.log")
    with open(log, "w", encoding="utf-8") as f:
        f.write(run.stdout)
    by_test = {}
    for line in run.stdout.splitlines():
        m = re.match(r"(\d+): ", line)
        if m:
            by_test.setdefault(m.group(1), []).append(line)
    total = [0, 0, 0]
    for number, name, _, result in RESULT.findall(run.stdout):
        output = "\n".join(by_test.get(number, []))
        passed, failed, skipped = counts_of(output, result)
        total[0] += passed
        total[1] += failed
        total[2] += skipped
        state = "FAIL" if failed else ("skip" if not passed else "ok")
        print(f"{state:4} {name}: {passed} passed, {failed} failed, {skipped} skipped")
        if failed:
            print("\n".join("     " + line for line in output.splitlines()[-60:]))
        elif skipped:
            for line in output.splitlines():
                if "SKIP" in line and "] " not in line[:20]:
                    print("     " + line)
    if run.returncode != 0 and total[1] == 0:
        print(run.stdout[-4000:])
        total[1] += 1
    print(f"{build}: full log in {log}")
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped", flush=True)
    return 0 if total[1] == 0 and total[0] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())

#!/bin/bash
# run.sh - builds what needs a GPU and runs it: a bare CUDA toolkit with cuDNN,
# CMake and ninja are enough (OpenBLAS makes the cpu twins quick).
#
#     tests/gpu/run.sh [PART...]
#
# Parts, each with a time limit of its own; without any: build ops golden memory
# bench.
#   build      configure (SL_BARE, SL_CUDA_ARCHS=90a) and compile into build-gpu
#   ops        every op against its cpu twin          (gpu_test)
#   golden     the reference's vectors on the card    (golden_test --device cuda:0)
#   full       the full-size ones too                 (golden_test --full)
#   memory     the card's memory: costs, promises     (gpu_memory_bench)
#   bench      times of ops and stages                (bench gpu --json)
#   video      whole videos of real sizes to y4m      (gpu_video)
#   sanitizer  memcheck and racecheck over gpu_test --small
#
# PART:WORD runs less of it: checks (ops) and cases (bench) whose name has WORD, one
# case (golden, full), one area (sanitizer), one video.
#
# One line a check; then the failures again; last `N passed, N failed`.  Logs are
# in build-gpu/run.  Environment: SL_CUDA_ARCHS; CMAKE_PREFIX_PATH and CUDNN_ROOT,
# where libraries lie elsewhere; SLUICE_SHARED, the folder above golden/; SL_DEVICE
# (cuda:0); SL_WORK, a folder with 28 GB free for full (build-gpu/work).
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build-gpu
logs=$build/run
device=${SL_DEVICE:-cuda:0}
export PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$logs"
: > "$logs/failures"
passed=0
failed=0

fail() {
    echo "FAIL $*" | tee -a "$logs/failures"
    failed=$((failed + 1))
}

pass() {
    echo "ok   $*"
    passed=$((passed + 1))
}

# step NAME SECONDS COMMAND...: its lines "ok", "PASS" and "FAIL" are the checks.
# It must end by itself, and with 0 unless it said what failed.
step() {
    local name=$1 seconds=$2 log=$logs/$1.log code bad good
    shift 2
    local start=$SECONDS
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    good=$(grep -cE '^(ok|PASS) ' "$log")
    bad=$(grep -c '^FAIL ' "$log")
    grep '^FAIL ' "$log" >> "$logs/failures"
    passed=$((passed + good))
    failed=$((failed + bad))
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then
        fail "$name: not done after $seconds s"
    elif [ "$code" != 0 ] && [ "$bad" = 0 ]; then
        fail "$name: ended with code $code: $(tail -n 1 "$log" | cut -c 1-200)"
    elif [ "$good" = 0 ] && [ "$bad" = 0 ]; then
        pass "$name"
    fi
    echo "     $name took $((SECONDS - start)) s"
}

# cuDNN comes with the toolkit or with Python's packages.
find_cudnn() {
    local found
    [ -n "${CUDNN_ROOT:-}" ] && return
    found=$(ls -d /usr/local/cuda/include/cudnn.h /usr/include/cudnn.h \
        /usr/include/*/cudnn.h 2> /dev/null | head -n 1)
    [ -n "$found" ] && return
    found=$(python3 -c 'import nvidia.cudnn; print(list(nvidia.cudnn.__path__)[0])' 2> /dev/null)
    [ -n "$found" ] && export CUDNN_ROOT=$found
}

part_build() {
    find_cudnn
    if ! timeout 120 cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release \
        -DSL_BARE=ON -DSL_WERROR=OFF -DSL_WITH_CUDA=ON "-DSL_CUDA_ARCHS=${SL_CUDA_ARCHS:-90a}" \
        > "$logs/configure.log" 2>&1; then
        tail -n 20 "$logs/configure.log"
        fail "configure"
        return
    fi
    grep 'Left out' "$logs/configure.log"
    pass "configure"
    if ! timeout 400 ninja -k 0 -C "$build" > "$logs/build.log" 2>&1; then
        grep -E 'error|FAILED' "$logs/build.log" | head -n 30
        fail "build"
        return
    fi
    pass "build, $SECONDS s"
}

# A program that the build left out is a failure, not silence.
have() {
    [ -x "$build/$1" ] && return 0
    fail "$2: there is no $1"
    return 1
}

part_ops() {
    have gpu_test ops && step ops 240 "$build/gpu_test" ${word:+"$word"}
}

part_golden() {
    have golden_test golden || return
    step golden 240 "$build/golden_test" --device "$device" ${word:+--only "$word"}
    step golden-streamed 240 "$build/golden_test" --device "$device" --streamed \
        ${word:+--only "$word"}
}

part_full() {
    local work=${SL_WORK:-$build/work}
    mkdir -p "$work"
    have golden_test full && step full 560 "$build/golden_test" --device "$device" --full \
        --work "$work" ${word:+--only "$word"}
}

part_memory() {
    have gpu_memory_bench memory && step memory 120 "$build/gpu_memory_bench" "$device"
}

part_bench() {
    have bench bench && step bench 180 "$build/bench" gpu --json ${word:+"$word"}
    [ -n "$word" ] && return
    # Every plan on offer for the VAE, the best of each shape last.
    if have gpu_conv_bench bench; then
        timeout 90 "$build/gpu_conv_bench" > "$logs/conv_plans.log" 2>&1 ||
            fail "gpu_conv_bench: $(tail -n 1 "$logs/conv_plans.log" | cut -c 1-300)"
        grep -v '^best' "$logs/conv_plans.log"
        grep '^best' "$logs/conv_plans.log"
    fi
}

# video NAME ARGUMENT...: one of them, unless another is asked for.
video() {
    local name=$1
    shift
    [ -n "$word" ] && [ "$word" != "$name" ] && return
    step "video-$name" 150 "$build/gpu_video" "$@" --work "${SL_WORK:-$build/work}"
}

part_video() {
    have gpu_video video || return
    mkdir -p "${SL_WORK:-$build/work}"
    video t2v-1.3b wan2.1-t2v-1.3b --device "$device" --size 832x480
    video i2v-a14b wan2.2-i2v-a14b --device "$device" --size 1280x720 --precision int8 \
        --attention sagesla --once
    # The same step resident and streamed under a small card's limit.
    video t2v-14b wan2.1-t2v-14b --device "$device" --size 832x480 --precision int8 \
        --attention sagesla --once
    video streamed-14b wan2.1-t2v-14b --device "$device:12GiB" --size 832x480 --precision int8 \
        --attention sagesla --streamed --once
    video streamed-1.3b wan2.1-t2v-1.3b --device "$device:8GiB" --size 832x480 --streamed --once
}

part_sanitizer() {
    local tool area checker
    have gpu_test sanitizer || return
    checker=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer \
        /opt/nvidia/*/compute-sanitizer 2> /dev/null | head -n 1)
    if [ -z "$checker" ]; then
        fail "sanitizer: there is no compute-sanitizer"
        return
    fi
    for tool in memcheck racecheck; do
        # cuDNN's attention, compiled at run time, has reads and writes that racecheck
        # takes for a race (11 places, H200, CUDA 13.0); its code is not ours to order,
        # and its results are the same to the bit in every run.
        local others=()
        [ "$tool" = racecheck ] && others=(--kernel-name-exclude kns=cudnn_generated)
        for area in ${word:-small linear sparse conv attention}; do
            # An area that the build lacks has no check and is not missed here.
            step "$tool-$area" 200 "$checker" --tool "$tool" --error-exitcode 9 \
                "${others[@]}" "$build/gpu_test" --small --inline --area "$area"
        done
    done
}

for part in ${*:-build ops golden memory bench}; do
    word=${part#*:}
    [ "$word" = "$part" ] && word=
    case ${part%%:*} in
    build | ops | golden | full | memory | bench | video | sanitizer)
        echo "---- $part"
        "part_${part%%:*}"
        ;;
    *)
        echo "run.sh: no part \"$part\": build, ops, golden, full, memory, bench, video, sanitizer" >&2
        exit 2
        ;;
    esac
done
echo "---- failures"
head -n 60 "$logs/failures" | cut -c 1-300
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

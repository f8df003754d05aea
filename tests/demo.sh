#!/usr/bin/env bash
# demo.sh BUILD - a prompt becomes a video on this machine's cpu, step by step.
#
# Starts a daemon of its own with the shapes model, loads it, generates, shows the
# device's memory before, during and after, makes a strip of frames, and ends
# everything that it started.  $PROMPT is the prompt.
set -euo pipefail

BUILD=$(cd "${1:-build}" && pwd)
PROMPT=${PROMPT:-a red circle moves from left to right}
DEMO=$BUILD/demo
MODELS=$BUILD/models
MODEL=shapes-t2v
RUN=$(mktemp -d /tmp/sluice-demo-XXXXXX) # a socket's path must be short
LOG=$DEMO/sluiced.log
DAEMON=
WATCHER=

finish() {
    local rc=$?
    trap - EXIT INT TERM
    [ -z "$WATCHER" ] || kill "$WATCHER" 2>/dev/null || true
    if [ -n "$DAEMON" ] && kill -0 "$DAEMON" 2>/dev/null; then
        kill "$DAEMON" 2>/dev/null || true
        wait "$DAEMON" 2>/dev/null || true
    fi
    if [ "$rc" -ne 0 ] && [ -s "$LOG" ]; then
        echo "the daemon's last lines:"
        tail -n 20 "$LOG"
    fi
    rm -rf "$RUN"
    exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }
sluice() { local command=$1; shift; "$BUILD/sluice" "$command" "$@" --socket "$RUN/sluice.sock"; }

mkdir -p "$DEMO/outputs"

say "the model"
[ -d "$MODELS/$MODEL" ] || fail "there is no $MODELS/$MODEL, which the build makes of tests/models/shapes"
echo "Coloured shapes that move: what it knows of is in tests/models/shapes/README.md."
"$BUILD/sluice" inspect "$MODELS/$MODEL"

say "the daemon, with 2 GiB of this machine's memory as its device"
"$BUILD/sluiced" --device cpu:2GiB --models "$MODELS" --outputs "$DEMO/outputs" \
    --runtime "$RUN" >"$LOG" 2>&1 &
DAEMON=$!
for _ in $(seq 300); do
    sluice health >/dev/null 2>&1 && break
    kill -0 "$DAEMON" 2>/dev/null || fail "the daemon ended at its start"
    sleep 0.1
done
sluice health || fail "the daemon did not become ready"
sluice models

say "memory before"
sluice stats

say "loading the model"
sluice load "$MODEL"
sluice stats

say "the job: \"$PROMPT\""
# The ledger while the job runs, the first time that its memory is mapped.
(
    for _ in $(seq 2000); do
        sluice stats >"$RUN/during" 2>/dev/null || true
        grep -q '^    job .*' "$RUN/during" && exec mv "$RUN/during" "$RUN/busy"
        sleep 0.02
    done
) &
WATCHER=$!
started=$(date +%s%N)
sluice generate "$PROMPT" --model "$MODEL" -o "$DEMO/demo.mp4" 2>&1 | tee "$RUN/generated"
ended=$(date +%s%N)
kill "$WATCHER" 2>/dev/null || true
wait "$WATCHER" 2>/dev/null || true
WATCHER=

say "memory during the job"
[ -s "$RUN/busy" ] || fail "no memory numbers were seen while the job ran"
cat "$RUN/busy"

say "memory after"
sluice stats

say "the file"
if command -v ffprobe >/dev/null; then
    ffprobe -v error -count_frames -select_streams v:0 -of default=noprint_wrappers=1 -show_entries \
        stream=codec_name,width,height,pix_fmt,avg_frame_rate,nb_read_frames "$DEMO/demo.mp4" \
        | tee "$RUN/probe"
    grep -qx 'codec_name=h264' "$RUN/probe" || fail "the video is not H.264"
    grep -qx 'avg_frame_rate=16/1' "$RUN/probe" || fail "the video has not 16 frames a second"
    grep -qx 'nb_read_frames=17' "$RUN/probe" || fail "the video has not the 17 frames asked for"
else
    echo "ffprobe is not installed: the file was not probed"
fi

say "a strip of its frames"
STRIP=$DEMO/demo.png
rm -f "$STRIP"
if command -v ffmpeg >/dev/null; then # every fourth frame, from left to right
    ffmpeg -v error -i "$DEMO/demo.mp4" -vf "select=not(mod(n\\,4)),tile=5x1:padding=4" \
        -frames:v 1 -y "$STRIP"
else
    echo "ffmpeg is not installed: there is no strip"
fi
ls -l "$DEMO"/demo.*
SEEN=
if PYTHON=$(cat "$BUILD/python-with-numpy") && [ -s "$STRIP" ]; then
    SEEN=$("$PYTHON" -B "$(dirname "$0")/models/read.py" "$DEMO/demo.mp4") || SEEN=
fi

say "unloading"
sluice unload "$MODEL"
sluice stats

say "the daemon ends"
children=$(cat "/proc/$DAEMON/task/$DAEMON/children")
kill "$DAEMON"
wait "$DAEMON" || fail "the daemon ended with $?"
for pid in $DAEMON $children; do
    [ ! -d "/proc/$pid" ] || fail "process $pid is left"
done
DAEMON=
echo "no process is left"

say "done"
grep -E '^(planned|measured) peak' "$RUN/generated"
grep -q '(equal)' "$RUN/generated" || fail "planned and measured peak differ"
echo "the job took $(((ended - started) / 1000000)) ms in all"
echo "asked for: $PROMPT"
[ -z "$SEEN" ] || echo "read back from the frames: $SEEN"
echo "the video: $DEMO/demo.mp4"
[ ! -s "$STRIP" ] || echo "its frames: $STRIP"

"""Says what plain image processing sees in a video of the shapes models' size.

    python3 tests/models/read.py VIDEO
"""
import subprocess
import sys

import numpy as np

import semantic
import shapes


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", sys.argv[1], "-f", "rawvideo", "-pix_fmt",
                          "rgb24", "-"], check=True, capture_output=True, timeout=60).stdout
    frame_bytes = shapes.HEIGHT * shapes.WIDTH * 3
    if not raw or len(raw) % frame_bytes:
        raise SystemExit(f"{sys.argv[1]}: {len(raw)} bytes of pixels are no frames of "
                         f"{shapes.WIDTH} x {shapes.HEIGHT}")
    seen = semantic.read_clip(np.frombuffer(raw, np.uint8).reshape(-1, shapes.HEIGHT, shapes.WIDTH,
                                                                   3))
    items = [f"a {i['color']} {i['shape']}, {i['motion']}" for i in seen["items"]] or ["nothing"]
    print(f"{'; '.join(items)}; on {seen['background']}")


main()

#!/usr/bin/env python3
"""Writes shapes/prompts.json: the fixed questions of the semantic test.

Half of them name a pair of colour and shape that training never shows; every
colour, shape, motion and background is asked for at least three times.  Made
once, before training; it is here to say how.
"""

import json
import os
import random
import sys

import shapes

COUNT = 48


def main():
    rng = random.Random(20261)
    names = {"color": list(shapes.COLORS), "shape": shapes.SHAPES, "motion": shapes.MOTIONS,
             "background": list(shapes.BACKGROUNDS)}
    asked = {kind: {n: 0 for n in values} for kind, values in names.items()}
    rows = []
    while len(rows) < COUNT:
        want_new = len(rows) % 2 == 0
        candidates = []
        for _ in range(400):
            scene = shapes.sample_scene(rng, jitter=0.0, allow_held_out=True)
            new = any(shapes.held_out(i.color, i.shape) for i in scene.items)
            if new == want_new and (len(scene.items) == 2) == (len(rows) % 3 == 2):
                rarity = asked["background"][scene.background] + sum(
                    asked[k][getattr(i, k)] for i in scene.items for k in ("color", "shape", "motion"))
                candidates.append((rarity / len(scene.items), len(candidates), scene))
        scene = min(candidates)[2]
        asked["background"][scene.background] += 1
        for i in scene.items:
            for k in ("color", "shape", "motion"):
                asked[k][getattr(i, k)] += 1
        rows.append({
            "prompt": shapes.describe(scene, rng), "background": scene.background,
            "held_out": want_new,
            "items": [{"color": i.color, "shape": i.shape, "motion": i.motion, "size": i.size,
                       "speed": i.speed} for i in scene.items]})
    assert all(n >= 3 for kind in asked.values() for n in kind.values()), asked
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shapes", "prompts.json")
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    print(f"{len(rows)} prompts", file=sys.stderr)


if __name__ == "__main__":
    main()

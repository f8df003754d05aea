"""Reads a clip back: what is there, in which colour, and where it goes.

Plain image processing on decoded frames, with no knowledge of the prompt and
no network: background = colour of the border, objects = connected regions that
differ from it, shape = best overlap with the drawn shapes, motion = path of
the centre and change of area.
"""

import numpy as np

import shapes

MIN_AREA = 24           # pixels; smaller specks are not objects
MOVED = 6.0             # pixels between first and last frames: less is "still"
GROWN = 1.45            # ratio of areas
OBJECT_DISTANCE = 42.0  # from the background, Euclidean in RGB


def nearest(color, table):
    names = list(table)
    d = [np.linalg.norm(np.asarray(table[n], float) - color) for n in names]
    return names[int(np.argmin(d))]


def components(mask):
    """Connected regions (4 neighbours) as boolean masks, the largest first."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        grown = labels.copy()
        grown[1:] = np.maximum(grown[1:], labels[:-1])
        grown[:-1] = np.maximum(grown[:-1], labels[1:])
        grown[:, 1:] = np.maximum(grown[:, 1:], labels[:, :-1])
        grown[:, :-1] = np.maximum(grown[:, :-1], labels[:, 1:])
        grown[~mask] = 0
        # jump to the label's own label: regions close in a few rounds
        flat = np.concatenate([[0], grown.reshape(-1)])
        grown = np.maximum(grown, flat[grown])
        if (grown == labels).all():
            break
        labels = grown
    found = [labels == i for i in np.unique(labels) if i]
    found = [m for m in found if m.sum() >= MIN_AREA]
    return sorted(found, key=lambda m: -m.sum())


def sharpened(mask, off):
    """The part of an object that is nearer to its own colour than to the background's, as the
    edge of a soft or smeared picture is half way; off: [H, W, 3] from the background."""
    far = np.linalg.norm(off, axis=-1)
    color = np.median(off[mask & (far >= 0.6 * np.quantile(far[mask], 0.95))], axis=0)
    half = mask & (off @ color >= 0.5 * (color @ color))
    return half if half.sum() >= MIN_AREA else mask


def _centre(mask):
    y, x = np.nonzero(mask)
    return x.mean() + 0.5, y.mean() + 0.5


def _box_centre(mask):
    """Unlike the centre of mass it stays where it is when a lopsided shape grows."""
    y, x = np.nonzero(mask)
    return (x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2


_AREA = {s: float(shapes.coverage(s, 64, 64, 20).sum()) / 400 for s in shapes.SHAPES}
_OFFSET = {}
for _s in shapes.SHAPES:
    _m = shapes.coverage(_s, 64, 64, 20)
    _y, _x = np.meshgrid(np.arange(128) + 0.5, np.arange(128) + 0.5, indexing="ij")
    _OFFSET[_s] = ((_x * _m).sum() / _m.sum() - 64) / 20, ((_y * _m).sum() / _m.sum() - 64) / 20


def shape_of(mask):
    """The drawn shape of the same centre and area that overlaps best."""
    area = mask.sum()
    cx, cy = _centre(mask)
    best, best_overlap = None, -1.0
    for s in shapes.SHAPES:
        radius = (area / _AREA[s]) ** 0.5
        dx, dy = _OFFSET[s]
        drawn = shapes.coverage(s, cx - dx * radius, cy - dy * radius, radius, sub=2) > 0.5
        overlap = (drawn & mask).sum() / max(1, (drawn | mask).sum())
        if overlap > best_overlap:
            best, best_overlap = s, overlap
    return best, best_overlap


def border_color(video):
    edge = np.concatenate([video[:, :3].reshape(-1, 3), video[:, -3:].reshape(-1, 3),
                           video[:, :, :3].reshape(-1, 3), video[:, :, -3:].reshape(-1, 3)])
    return np.median(edge, axis=0)


def most(values):
    values = list(values)
    return max(dict.fromkeys(values), key=values.count)  # the earliest of equals


def motion_of(track):
    """track: list of (cx, cy, area), first to last."""
    n = max(1, len(track) // 5)
    first, last = np.mean(track[:n], axis=0), np.mean(track[-n:], axis=0)
    dx, dy = last[0] - first[0], last[1] - first[1]
    if np.hypot(dx, dy) >= MOVED:
        score = {m: dx * ux + dy * uy for m, (ux, uy) in shapes.DIRECTIONS.items()}
        return max(score, key=score.get)
    ratio = last[2] / max(first[2], 1.0)
    return "grow" if ratio > GROWN else "shrink" if ratio < 1 / GROWN else "still"


def read_clip(video):
    """video uint8 [F, H, W, 3].  Returns {"background", "count", "items"}, the items
    from left to right as {"color", "shape", "motion", "overlap"}."""
    video = np.asarray(video)
    ground = border_color(video)
    frames = []
    for frame in video:
        off = frame.astype(float) - ground
        different = components(np.linalg.norm(off, axis=-1) > OBJECT_DISTANCE)
        frames.append([sharpened(m, off) for m in different])
    count = most(len(f) for f in frames)
    result = {"background": nearest(ground, shapes.BACKGROUNDS), "count": count, "items": []}
    if count == 0:
        return result
    usable = [i for i, f in enumerate(frames) if len(f) == count]
    middle = min(usable, key=lambda i: abs(i - len(frames) // 2))
    order = sorted(range(count), key=lambda j: _centre(frames[middle][j])[0])
    for j in order[:4]:
        at = {middle: frames[middle][j]}
        for direction in (1, -1):  # follow it by the nearest centre, frame to frame
            last = frames[middle][j]
            for i in (u for u in (usable if direction > 0 else usable[::-1])
                      if (u - middle) * direction > 0):
                cx, cy = _centre(last)
                last = min(frames[i], key=lambda m: np.hypot(_centre(m)[0] - cx, _centre(m)[1] - cy))
                at[i] = last
        masks = [at[i] for i in sorted(at)]
        step = max(1, len(masks) // 5)
        votes = [shape_of(m) for m in masks[::step]]
        colors = [np.median(video[i][at[i]], axis=0) for i in sorted(at)]
        result["items"].append({
            "color": nearest(np.median(colors, axis=0), shapes.COLORS),
            "shape": most(v[0] for v in votes),
            "overlap": float(np.mean([v[1] for v in votes])),
            "motion": motion_of([(*_box_centre(m), float(m.sum())) for m in masks]),
        })
    return result


ATTRIBUTES = ("color", "shape", "motion", "count", "background")


def judge(scene, seen):
    """{attribute: [right, asked]} for one clip."""
    score = {a: [0, 0] for a in ATTRIBUTES}
    score["count"] = [int(seen["count"] == len(scene.items)), 1]
    score["background"] = [int(seen["background"] == scene.background), 1]
    for i, item in enumerate(scene.items):
        got = seen["items"][i] if i < len(seen["items"]) else {}
        for a in ("color", "shape", "motion"):
            score[a][1] += 1
            score[a][0] += int(got.get(a) == getattr(item, a))
    return score


def add(total, score):
    for a, (right, asked) in score.items():
        total.setdefault(a, [0, 0])
        total[a][0] += right
        total[a][1] += asked
    return total

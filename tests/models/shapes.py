"""The world of the shapes model: what there is, how it is said, how it looks.

A scene is one or two flat shapes on a flat background, each with a motion of
its own.  This file is shared by training (which renders scenes), by the
semantic test (which reads frames back) and by the list of fixed prompts, so
that all three mean the same by "a small red star".
"""

import random
from dataclasses import dataclass, field

import numpy as np

WIDTH = HEIGHT = 128
FRAMES = 17

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 220, 40),
    "orange": (250, 140, 20),
    "purple": (130, 40, 170),
    "pink": (250, 130, 190),
    "cyan": (40, 210, 220),
    "brown": (120, 70, 30),
    "black": (15, 15, 15),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "navy": (15, 20, 70),
    "beige": (235, 220, 185),
    "mint": (180, 240, 205),
    "lavender": (205, 190, 245),
    "sky": (150, 205, 250),
    "olive": (95, 100, 40),
    "maroon": (90, 15, 35),
    "charcoal": (55, 55, 60),
}
SHAPES = ["circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "crescent",
          "bar"]
DIAGONAL = 0.70710678
DIRECTIONS = {  # unit vectors in pixels: x to the right, y down
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "upper right": (DIAGONAL, -DIAGONAL),
    "upper left": (-DIAGONAL, -DIAGONAL),
    "lower right": (DIAGONAL, DIAGONAL),
    "lower left": (-DIAGONAL, DIAGONAL),
}
MOTIONS = list(DIRECTIONS) + ["still", "grow", "shrink"]
SIZES = {"small": 14.0, "medium": 18.0, "large": 23.0}  # radius, pixels
SPEEDS = {"slow": 28.0, "normal": 48.0, "fast": 72.0}   # pixels from first to last frame

MIN_CONTRAST = 95.0  # between an object's colour and the background's, Euclidean in RGB

# Two objects share the picture: the first one said is on the left.
PAIR_X = (32.0, 96.0)
PAIR_RADIUS = 15.0
PAIR_TRAVEL = 20.0

# A sentence says all about a clip.  In one that goes on from an image an object may be so far
# off, two objects a quarter of it.
JITTER = 8.0  # pixels in x and in y


@dataclass
class Item:
    color: str
    shape: str
    motion: str
    size: str = "medium"
    speed: str = "normal"
    jitter: tuple = (0.0, 0.0)


@dataclass
class Scene:
    items: list = field(default_factory=list)
    background: str = "white"

    def path(self, i):
        """Centre and radius of item i in each frame: [FRAMES, 3]."""
        item = self.items[i]
        at = np.linspace(-0.5, 0.5, FRAMES)
        pair = len(self.items) == 2
        radius = PAIR_RADIUS if pair else SIZES[item.size]
        travel = PAIR_TRAVEL if pair else SPEEDS[item.speed]
        cx = (PAIR_X[i] if pair else WIDTH / 2) + item.jitter[0]
        cy = HEIGHT / 2 + item.jitter[1]
        dx, dy = DIRECTIONS.get(item.motion, (0, 0))
        scale = np.ones(FRAMES)
        if item.motion == "grow":
            scale = 1.0 + 0.9 * at
        elif item.motion == "shrink":
            scale = 1.0 - 0.9 * at
        return np.stack([cx + dx * travel * at, cy + dy * travel * at, radius * scale], axis=1)


def contrast(color, background):
    a, b = np.array(COLORS[color], float), np.array(BACKGROUNDS[background], float)
    return float(np.linalg.norm(a - b))


def held_out(color, shape):
    """One pair in ten of colour and shape is never trained on."""
    return (list(COLORS).index(color) + 3 * SHAPES.index(shape)) % 10 == 0


# ---- words ----

MOVE = {
    "right": ["moves left to right", "moves right", "moves to the right", "slides right",
              "goes from left to right", "travels to the right"],
    "left": ["moves right to left", "moves left", "moves to the left", "slides left",
             "goes from right to left", "travels to the left"],
    "up": ["moves up", "rises", "moves upwards", "goes up", "slides up"],
    "down": ["moves down", "falls", "moves downwards", "goes down", "slides down"],
    "upper right": ["moves to the upper right", "moves up and right", "goes to the upper right"],
    "upper left": ["moves to the upper left", "moves up and left", "goes to the upper left"],
    "lower right": ["moves to the lower right", "moves down and right", "goes to the lower right"],
    "lower left": ["moves to the lower left", "moves down and left", "goes to the lower left"],
    "still": ["stays still", "does not move", "stands still", "rests"],
    "grow": ["grows", "gets bigger", "becomes larger"],
    "shrink": ["shrinks", "gets smaller", "becomes smaller"],
}
SIZE_WORDS = {"small": ["small ", "little ", "tiny "], "medium": ["", "", "medium "],
              "large": ["large ", "big ", "huge "]}
SPEED_WORDS = {"slow": [" slowly", " gently"], "normal": [""], "fast": [" quickly", " fast"]}
BACKGROUND_WORDS = {"sky": ["sky blue", "sky"], "gray": ["gray", "grey"], "navy": ["navy", "navy blue"]}
PREFIXES = ["", "", "", "", "a video of ", "a clip of ", "we see "]


def _item_words(item, pair, rng):
    size = "" if pair else rng.choice(SIZE_WORDS[item.size])
    article = rng.choice(["a ", "a ", "a ", "the ", "one "])
    noun = f"{size}{item.color} {item.shape}"
    if article == "a " and noun[0] in "aeiou":
        article = "an "
    moving = item.motion in DIRECTIONS and not pair
    speed = rng.choice(SPEED_WORDS[item.speed]) if moving else ""
    return f"{article}{noun} {rng.choice(MOVE[item.motion])}{speed}"


def describe(scene, rng):
    """One of the many ways to say it."""
    pair = len(scene.items) == 2
    text = rng.choice([" and ", ", "] if pair else [""]).join(
        _item_words(item, pair, rng) for item in scene.items)
    ground = rng.choice(BACKGROUND_WORDS.get(scene.background, [scene.background]))
    if scene.background == "white" and rng.random() < 0.6:
        pass  # nothing said means white
    elif rng.random() < 0.75:
        article = "an" if ground[0] in "aeiou" else "a"
        text = f"{text} {rng.choice(['on', 'against', 'over'])} {article} {ground} background"
    else:
        text = f"{ground} background, {text}"
    text = rng.choice(PREFIXES) + text
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:] + "."
    return text


def sample_scene(rng, jitter=0.0, allow_held_out=False, pair_share=0.3):
    background = "white" if rng.random() < 0.3 else rng.choice(list(BACKGROUNDS))
    scene = Scene(background=background)
    count = 2 if rng.random() < pair_share else 1
    most = jitter if count == 1 else jitter / 4
    for _ in range(count):
        while True:
            item = Item(rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(MOTIONS),
                        rng.choice(list(SIZES)), rng.choice(list(SPEEDS)))
            if contrast(item.color, background) < MIN_CONTRAST:
                continue
            if not allow_held_out and held_out(item.color, item.shape):
                continue
            break
        item.jitter = (rng.uniform(-most, most), rng.uniform(-most, most))
        scene.items.append(item)
    return scene


# ---- looks ----

TEMPLATE = 96        # pixels of a template's side
TEMPLATE_REACH = 1.4  # its half side in radii


def _inside(shape, u, v):
    r = np.hypot(u, v)
    if shape == "circle":
        return r < 0.95
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.85
    if shape == "triangle":
        return (v < 0.75) & (v > 1.9 * abs(u) - 1.0)
    if shape == "diamond":
        return abs(u) / 0.8 + abs(v) / 1.2 < 1.0
    if shape == "star":
        angle = np.arctan2(u, -v)
        step = 2 * np.pi / 5
        a = (angle + step / 2) % step - step / 2
        x, y = r * np.cos(a), r * abs(np.sin(a))
        outer, inner = 1.2, 0.48
        ix, iy = inner * np.cos(step / 2), inner * np.sin(step / 2)
        return (x - outer) * iy - y * (ix - outer) < 0
    if shape == "cross":
        return ((abs(u) < 0.3) & (abs(v) < 1.0)) | ((abs(v) < 0.3) & (abs(u) < 1.0))
    if shape == "ring":
        return (r < 1.05) & (r > 0.58)
    if shape == "heart":
        x, y = u * 1.15, -v * 1.15 + 0.1
        return (x * x + y * y - 0.8) ** 3 - 1.6 * x * x * y ** 3 < 0
    if shape == "crescent":
        return (r < 1.05) & (np.hypot(u - 0.55, v) > 0.85)
    if shape == "bar":
        return (abs(u) < 1.15) & (abs(v) < 0.36)
    raise ValueError(shape)


def template(shape, sub=4):
    """Coverage of the shape in [0, 1], [TEMPLATE, TEMPLATE], centred."""
    n = TEMPLATE * sub
    c = ((np.arange(n) + 0.5) / n * 2 - 1) * TEMPLATE_REACH
    v, u = np.meshgrid(c, c, indexing="ij")
    m = _inside(shape, u, v).astype(np.float32)
    return m.reshape(TEMPLATE, sub, TEMPLATE, sub).mean(axis=(1, 3))


def coverage(shape, cx, cy, radius, sub=4):
    """Coverage in [0, 1] of each pixel of a frame, straight from the formula."""
    c = (np.arange(WIDTH * sub) + 0.5) / sub
    y, x = np.meshgrid(c, c, indexing="ij")
    m = _inside(shape, (x - cx) / radius, (y - cy) / radius).astype(np.float32)
    return m.reshape(HEIGHT, sub, WIDTH, sub).mean(axis=(1, 3))


def render(scene):
    """uint8 [FRAMES, HEIGHT, WIDTH, 3]."""
    video = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.float32)
    video[:] = BACKGROUNDS[scene.background]
    for i, item in enumerate(scene.items):
        for f, (cx, cy, radius) in enumerate(scene.path(i)):
            a = coverage(item.shape, cx, cy, radius)[..., None]
            video[f] = video[f] * (1 - a) + np.array(COLORS[item.color], np.float32) * a
    return (video + 0.5).astype(np.uint8)


def corpus(count, seed=0):
    rng = random.Random(seed)
    return [describe(sample_scene(rng, allow_held_out=True), rng) for _ in range(count)]

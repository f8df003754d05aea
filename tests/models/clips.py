"""Prompts to a daemon, clips back, and what is right in them.

What the semantic test, its table and the sabotage have in common.  A clip is
asked for as a PNG strip (lossless), decoded by ffmpeg and read by semantic.py.
"""
import concurrent.futures
import json
import os
import subprocess
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "e2e"), HERE]
# pylint: disable=wrong-import-position
import harness  # noqa: E402
import semantic  # noqa: E402
import shapes  # noqa: E402

MODELS = os.path.join(harness.BUILD, "models")
KEPT = os.path.join(harness.BUILD, "semantic")  # strips, for a person to look at
BOUND = 90  # percent, of each attribute
SAID = {"color": "colour", "shape": "shape", "motion": "direction", "count": "count",
        "background": "background"}
T2V, I2V = "shapes-t2v", "shapes-i2v"


class Question:
    """A prompt, and the scene that it names.  start: the scene that an image is the first
    frame of."""

    def __init__(self, number, prompt, scene, start=None):
        self.number, self.prompt, self.scene = number, prompt, scene
        self.start = start or scene
        self.held_out = any(shapes.held_out(i.color, i.shape) for i in scene.items)


def questions():
    """The fixed ones."""
    with open(os.path.join(HERE, "shapes", "prompts.json"), encoding="utf-8") as f:
        rows = json.load(f)
    return [Question(i, row["prompt"], shapes.Scene([shapes.Item(**item) for item in row["items"]],
                                                    row["background"]))
            for i, row in enumerate(rows)]


def crossroads():
    """Images that do not tell how it goes on, each with four prompts: what is a little off the
    middle may stay there or be on its way, slowly, across, along or aslant."""
    asked = []
    corners = (("left", "upper", "red", "star"), ("left", "lower", "green", "square"),
               ("right", "upper", "blue", "circle"), ("right", "lower", "purple", "heart"))
    for side, height, color, shape in corners:
        off = (-7.0 if side == "left" else 7.0, -7.0 if height == "upper" else 7.0)
        start = shapes.Scene([shapes.Item(color, shape, "still", jitter=off)])
        across = "right" if side == "left" else "left"
        along, row_ahead = ("down", "lower") if height == "upper" else ("up", "upper")
        for motion in (across, along, f"{row_ahead} {across}", "still"):
            slowly = "" if motion == "still" else " slowly"
            asked.append(Question(len(asked), f"a {color} {shape} {shapes.MOVE[motion][0]}{slowly}",
                                  shapes.Scene([shapes.Item(color, shape, motion, speed="slow")]),
                                  start))
    return asked


def need_models(*names):
    for name in names:
        if not os.path.exists(os.path.join(MODELS, name)):
            raise harness.Skip(f"there is no {os.path.join(MODELS, name)}: the weights are not in "
                               "this checkout")


def daemon(device="cpu:2GiB"):
    return harness.Daemon(device=device, models=MODELS)


def frames_of(strip):
    """[FRAMES, HEIGHT, WIDTH, 3] of a PNG with the frames from left to right."""
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", strip, "-f", "rawvideo", "-pix_fmt",
                          "rgb24", "-"], check=True, capture_output=True,
                         timeout=60 * harness.PATIENCE).stdout
    wide = np.frombuffer(raw, np.uint8).reshape(shapes.HEIGHT, shapes.FRAMES, shapes.WIDTH, 3)
    return wide.transpose(1, 0, 2, 3)


def write_picture(path, rgb):
    return harness.png(path, rgb.shape[1], rgb.shape[0], lambda x, y: tuple(map(int, rgb[y, x])))


def psnr(a, b):
    error = np.square(a.astype(float) - b.astype(float)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


class Answer:
    """What came back for one question."""

    def __init__(self, question, strip, first=None):
        video = frames_of(strip)
        self.question, self.strip = question, strip
        self.seen = semantic.read_clip(video)
        self.psnr = None if first is None else psnr(video[0], first)

    def wrong(self):
        """In words, what is not as asked; empty when all is."""
        score = semantic.judge(self.question.scene, self.seen)
        return ", ".join(SAID[a] for a, (right, asked) in score.items() if right < asked)


def ask(d, question, args, folder):
    """One clip, from an image where the model takes one."""
    os.makedirs(folder, exist_ok=True)
    strip = os.path.join(folder, f"{question.number:02}.png")
    first, image = None, []
    if any(a.startswith(I2V) for a in args):
        first = shapes.render(question.start)[0]
        image = ["--image", write_picture(os.path.join(folder, f"{question.number:02}-first.png"),
                                          first)]
    result = d.cli("generate", question.prompt, *args, *image, "--seed", str(question.number),
                   "-o", strip, limit_s=120)
    assert result.code == 0, result
    return Answer(question, strip, first)


def ask_all(d, asked, args, name):
    """Two at a time: one is read while the other is made."""
    folder = os.path.join(KEPT, name)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda q: ask(d, q, args, folder), asked))


def rates(answers, scenes=None):
    """{attribute: percent right}; scenes: others than were asked for."""
    total = {}
    for i, answer in enumerate(answers):
        semantic.add(total, semantic.judge(scenes[i] if scenes else answer.question.scene,
                                           answer.seen))
    return {a: 100 * right / max(asked, 1) for a, (right, asked) in total.items()}


def by_chance(answers):
    """What the same clips score against the other prompts, on average: what one has without
    looking at the prompt."""
    scenes = [a.question.scene for a in answers]
    others = [rates(answers, scenes[k:] + scenes[:k]) for k in range(1, len(scenes))]
    return {a: sum(o[a] for o in others) / len(others) for a in others[0]}


def held_out(answers):
    return [a for a in answers if a.question.held_out]


def row(name, figures):
    return f"| {name} | " + " | ".join(f"{figures[a]:.0f}" for a in semantic.ATTRIBUTES) + " |"


def head(name):
    titles = [SAID[a] for a in semantic.ATTRIBUTES]
    return f"| {name} | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles)


def report(name, answers):
    """Prints percentages, and every clip that is not as asked."""
    print(head(f"{name}, percent right"))
    print(row(f"all {len(answers)}", rates(answers)))
    if held_out(answers):
        print(row(f"the {len(held_out(answers))} held out", rates(held_out(answers))))
    print(row("chance", by_chance(answers)))
    if answers[0].psnr is not None:
        values = sorted(a.psnr for a in answers)
        print(f"first frame: PSNR {values[0]:.1f} dB at least, {np.mean(values):.1f} dB on average")
    for answer in answers:
        if answer.wrong():
            print(f"  wrong {answer.wrong()}: \"{answer.question.prompt}\" {answer.strip}")
    sys.stdout.flush()

"""Do the shapes models show what the prompt says?  The fixed prompts through a daemon on cpu,
read back from the frames; half of them name pairs of colour and shape that training never saw.

A sanitizer build, which is many times slower, makes one clip of each kind and judges none.
"""
import os

import clips
from harness import PATIENCE, run

FIRST_FRAME_DB = 25.0  # against the image, the worst of all clips
NO_TIME = PATIENCE > 1


def asked(count=None):
    """The first prompts: every other one is held out, every third has two objects."""
    return clips.questions()[:count]


def check(name, args, questions):
    clips.need_models(args[1])
    with clips.daemon() as d:
        answers = clips.ask_all(d, questions[:1 if NO_TIME else None], args, name)
    if NO_TIME:
        return
    clips.report(" ".join([name, *args[2:]]), answers)
    for who, some in (("all", answers), ("held out", clips.held_out(answers))):
        for attribute, percent in clips.rates(some).items():
            assert percent >= clips.BOUND, f"{who}: {clips.SAID[attribute]} {percent:.0f} %"
    worst = min((a for a in answers if a.psnr is not None), key=lambda a: a.psnr, default=None)
    if worst:
        assert worst.psnr >= FIRST_FRAME_DB, \
            f"first frame: {worst.psnr:.1f} dB, {worst.question.prompt}"


def test_the_reader_reads_what_is_drawn():
    """The bound is on the models alone: drawn scenes are read without a mistake."""
    for question in asked(1 if NO_TIME else 12):
        seen = clips.semantic.read_clip(clips.shapes.render(question.scene))
        score = clips.semantic.judge(question.scene, seen)
        assert all(right == n for right, n in score.values()), (question.prompt, seen)


def test_the_daemon_knows_the_models():
    clips.need_models(clips.T2V, clips.I2V)
    with clips.daemon() as d:
        listed = {m["name"]: m for m in d.cli("models", "--json").json["models"]}
    for name, task in ((clips.T2V, "t2v"), (clips.I2V, "i2v")):
        for model in (name, name + "-quant"):
            assert listed[model]["problem"] == "" and listed[model]["task"] == task, listed


def test_the_files_are_small():
    """Under 16 MB in all, what the models have in common once."""
    clips.need_models(clips.T2V, clips.I2V)
    total = 0
    for folder, _, names in os.walk(os.path.join(clips.HERE, "shapes")):
        paths = [os.path.join(folder, name) for name in names]
        total += sum(os.path.getsize(path) for path in paths if not os.path.islink(path))
    assert 1e6 < total < 16e6, total


def test_text_to_video():
    """As anyone gets it who says nothing but the prompt."""
    check("t2v", ["--model", clips.T2V], asked())


def test_text_to_video_dense_with_ode():
    check("t2v-dense-ode", ["--model", clips.T2V, "--attention", "dense", "--sampler", "ode"],
          asked(24))


def test_text_to_video_in_int8():
    """The -quant files, with the attention that quantises, too."""
    check("t2v-quant", ["--model", clips.T2V + "-quant", "--attention", "sagesla"],
          asked(24))


def test_image_to_video():
    """The first frame is the image; what it does then is as the prompt says."""
    check("i2v", ["--model", clips.I2V], asked(24))


def test_from_one_image_the_prompt_decides():
    check("i2v-crossroads", ["--model", clips.I2V], clips.crossroads())


run(globals())

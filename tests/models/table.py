"""The table of what the shapes models get right, as Markdown.

    python3 tests/models/table.py BUILD [--prompts=N] [--device=SPEC] > table.md

This is `make semantic`.  Every fixed prompt in every cell; figures are percent right, in
brackets those of the held-out combinations.  Strips are left in BUILD/semantic.
"""
import itertools
import sys
import time

import clips

STEPS = (4, 2)


def cell(name, answers):
    every, some = clips.rates(answers), clips.rates(clips.held_out(answers))
    return f"| {name} | " + " | ".join(f"{every[a]:.0f} ({some[a]:.0f})" for a in every) + " |"


def table(d, model, asked, rows):
    print(clips.head(f"{model}: attention, precision, sampler, steps"))
    first = None
    for attention, precision, sampler, steps in rows:
        name = f"{attention} {precision} {sampler} {steps}"
        args = ["--model", model + ("-quant" if precision == "int8" else ""), "--attention",
                attention, "--sampler", sampler, "--steps", str(steps)]
        started = time.monotonic()
        answers = clips.ask_all(d, asked, args, f"{model} {name}".replace(" ", "-"))
        first = first or answers
        print(cell(name.replace(" ", ", "), answers), flush=True)
        print(f"{model} {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    chance = clips.by_chance(first)
    print(clips.row("chance: the first row's clips against other prompts", chance) + "\n")
    return first


def option(name, default):
    return next((a.split("=")[1] for a in sys.argv if a.startswith(f"--{name}=")), default)


def main():
    asked = clips.questions()[:int(option("prompts", 48))]
    clips.need_models(clips.T2V, clips.I2V)
    print(f"{len(asked)} prompts, {sum(q.held_out for q in asked)} of them held out; percent right "
          "(held out).\n", flush=True)
    with clips.daemon(option("device", "cpu:2GiB")) as d:
        attentions, precisions = ("dense", "sla", "sagesla"), ("bf16", "int8")
        table(d, clips.T2V, asked,
              itertools.product(attentions, precisions, ("sde", "ode"), STEPS))
        answers = table(d, clips.I2V, asked, itertools.product(("sla",), precisions,
                                                               ("sde", "ode"), (4,)))
        print(clips.head(f"{clips.I2V}, four ways on from one image"))
        crossroads = clips.ask_all(d, clips.crossroads(), ["--model", clips.I2V], "crossroads")
        print(clips.row(f"{len(crossroads)} clips", clips.rates(crossroads)))
        print(clips.row("chance", clips.by_chance(crossroads)) + "\n")
    values = sorted(a.psnr for a in answers + crossroads)
    print(f"First frames of {clips.I2V} against the image (first row and four ways on): PSNR "
          f"{values[0]:.1f} dB at least, {values[len(values) // 2]:.1f} dB in the middle.")


main()

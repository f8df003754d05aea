"""Does the semantic test notice?  Four mistakes, each in a copy of the source tree.

    python3 tests/models/sabotage.py FOLDER [NAME ...]

FOLDER gets the files of this checkout that git knows, and a build of them.  The untouched
copy has to pass; then one mistake at a time is made, built and put back, and the semantic test
has to fail.  Some ten minutes on two cores; FOLDER is kept, and a second run goes faster.
"""
import filecmp
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

# name: (file, what is there once, what is there instead)
MISTAKES = {
    "swapped RoPE axis": (
        "kernels/rope_cpu.c",
        "s / j->grid.W % j->grid.H,\n                             s % j->grid.W };",
        "s % j->grid.W,\n                             s / j->grid.W % j->grid.H };"),
    "dropped cross-attention": (
        "engine/nets/dit.c",
        "        SL_TRY(apply(f, &a, &q, &w->o, SL_ACT_NONE, err));\n"
        "        SL_TRY(ops->add(f->exec, &x, &x, &a, err));\n",
        "        SL_TRY(apply(f, &a, &q, &w->o, SL_ACT_NONE, err));\n"),
    "wrong sampler time": (
        "engine/pipeline/schedule.c",
        "(float)(1000.0 * schedule.t[i])",
        "(float)(1000.0 * cos(tau) / (sin(tau) + cos(tau)))"),
    "broken VAE cache": (
        "engine/nets/vae_part.c",
        "        if (cache->count > 0)\n            given = &cached;\n",
        "        params.zero_frames = 2;\n        (void)cached;\n"),
}


def command(*args, **options):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, **options)


def must(*args):
    done = command(*args)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(args)}:\n{done.stdout[-4000:]}")


def copy_tree(tree):
    """The files that git knows, as they are here; what is the same keeps its date."""
    for name in command("git", "-C", ROOT, "ls-files", "-z").stdout.split("\0")[:-1]:
        source, target = os.path.join(ROOT, name), os.path.join(tree, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(source):
            if not os.path.lexists(target):
                os.symlink(os.readlink(source), target)
        elif not os.path.exists(target) or not filecmp.cmp(source, target, shallow=False):
            shutil.copy(source, target)


def build(tree):
    folder = os.path.join(tree, "build")
    must("cmake", "-G", "Ninja", "-S", tree, "-B", folder, "-DCMAKE_BUILD_TYPE=Release",
         "-DSL_WITH_CUDA=OFF")
    must("ninja", "-C", folder, "sluice", "sluiced", "sluice-worker", "models")
    return folder


def judge(tree):
    """(passed, the table that it printed)"""
    folder = build(tree)
    done = command(sys.executable, "-B", os.path.join(tree, "tests/models/test_semantic.py"),
                   folder, "test_text_to_video")
    if not re.search(r"^1 passed, 0 failed, 0 skipped$|^0 passed, 1 failed, 0 skipped$",
                     done.stdout, re.M):
        raise SystemExit(f"the semantic test did not run:\n{done.stdout[-4000:]}")
    return done.returncode == 0, [line for line in done.stdout.splitlines() if line.startswith("|")]


def with_mistake(tree, name):
    file, right, wrong = MISTAKES[name]
    path = os.path.join(tree, file)
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if text.count(right) != 1:
        raise SystemExit(f"{name}: {file} has changed: what is to be replaced is there "
                         f"{text.count(right)} times")
    try:
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace(right, wrong))
        return judge(tree)
    finally:
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    tree, names = os.path.abspath(sys.argv[1]), sys.argv[2:] or list(MISTAKES)
    copy_tree(tree)
    noticed = True
    passed, lines = judge(tree)
    print("\n".join([f"untouched: {'passes' if passed else 'FAILS'}", *lines]), flush=True)
    noticed &= passed
    for name in names:
        passed, lines = with_mistake(tree, name)
        word = "NOT noticed: the test passes" if passed else "noticed: the test fails"
        print("\n".join([f"{name}: {word}", *lines]), flush=True)
        noticed &= not passed
    sys.exit(0 if noticed else 1)


if __name__ == "__main__":
    main()

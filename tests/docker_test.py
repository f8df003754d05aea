"""The steps of docker/Dockerfile in debootstrap roots, and the form of what lies beside it.

usage: docker_test.py BUILD_DIR

Docker is not needed: each stage is a Debian root of its own, in which RUN is a chroot,
COPY a copy, ENV, USER and WORKDIR what they say.  So a package that is missing, from the
build or from what the programs load, fails here.  Then a daemon is started in the final
root as its user, on a root file system that cannot be written, and makes a video.

Wants root, debootstrap and a Debian mirror, and some minutes; without them the steps are
skipped, loudly.  Exit code 77: everything was skipped.
"""
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build")
BASES = {"debian:12-slim": "bookworm"}
USER = 10001


def read(path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as f:
        return f.read()


def instructions(path):
    """[(word, rest)] without comments; continued lines are one."""
    lines = [line for line in read(path).splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


# ---- roots ----

def mirror():
    """Where this machine gets Debian from, or None: debootstrap knows one."""
    for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/debian*")]:
        try:
            with open(path, encoding="utf-8") as f:
                found = re.search(r"^(?:deb\s+|URIs:\s*)(https?://\S+)", f.read(), re.M)
        except FileNotFoundError:
            continue
        if found:
            return found[1]
    return None


def make_base(folder, suite):
    """A minimal Debian, made once a build folder."""
    root = os.path.join(folder, f"base-{suite}")
    if os.path.exists(os.path.join(root, "made")):
        return root
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, root]
    subprocess.run(command + ([mirror()] if mirror() else []), check=True,
                   stdout=subprocess.DEVNULL)
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(path, root + path)
    for path in glob.glob("/etc/apt/apt.conf.d/*proxy*"):
        shutil.copy(path, root + path)
    with open(os.path.join(root, "made"), "w", encoding="utf-8"):
        pass
    return root


def chroot(root, command, env, user=None, workdir="/", read_only=False, **options):
    """Runs a command in mount and pid namespaces of its own."""
    prepare = f"mount -t proc proc {shlex.quote(root)}/proc && "
    if read_only:
        quoted = shlex.quote(root)
        prepare = (f"mount --bind {quoted} {quoted} && mount -o remount,bind,ro {quoted} && "
                   f"mount -t proc proc {quoted}/proc && "
                   f"for d in tmp run/sluice var/lib/sluice/outputs; do "
                   f"mount -t tmpfs -o mode=0750,uid={USER},gid={USER} none {quoted}/$d; done && ")
    spec = f"--userspec={user} " if user else ""
    inner = f"cd {shlex.quote(workdir)} && {command}"
    script = f"{prepare}exec chroot {spec}{shlex.quote(root)} /bin/sh -c {shlex.quote(inner)}"
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c",
                           script], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env},
                          check=False, **options)


class Stage:
    def __init__(self, folder, number, base):
        self.root = os.path.join(folder, f"stage-{number}")
        self.env, self.workdir, self.user = {}, "/", None
        shutil.rmtree(self.root, ignore_errors=True)
        subprocess.run(["cp", "-a", base, self.root], check=True)

    def run(self, command):
        done = chroot(self.root, command, self.env, self.user, self.workdir, text=True,
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"RUN {command}\n{done.stdout[-3000:]}"

    def copy(self, words, stages):
        source = SOURCE
        if words[0].startswith("--from="):
            source = stages[words.pop(0)[len("--from="):]].root
        target = os.path.join(self.root, os.path.join(self.workdir, words[-1]).lstrip("/"))
        for word in words[:-1]:
            path = os.path.normpath(os.path.join(source, word.lstrip("/")))
            if path == SOURCE:
                copy_context(target)
                continue
            folder = target if words[-1].endswith("/") else os.path.dirname(target)
            os.makedirs(folder, exist_ok=True)
            shutil.copy(path, target)


def copy_context(target):
    """The project without what git ignores (.dockerignore says the same)."""
    files = subprocess.run(["git", "-C", SOURCE, "ls-files", "-co", "--exclude-standard", "-z"],
                           check=True, capture_output=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, files)):
        path = os.path.join(target, name)
        if os.path.isfile(os.path.join(SOURCE, name)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy(os.path.join(SOURCE, name), path)


def run_dockerfile(path, folder):
    """The last stage."""
    stages, stage, number = {}, None, 0
    for word, rest in instructions(path):
        print(f"  {word} {rest[:90]}", flush=True)
        if word == "FROM":
            name, *more = rest.split()
            stage = Stage(folder, number, make_base(folder, BASES[name]))
            number += 1
            if more:
                stages[more[1]] = stage
        elif word == "RUN":
            stage.run(rest)
        elif word == "COPY":
            stage.copy(rest.split(), stages)
        elif word == "ENV":
            stage.env.update(pair.split("=", 1) for pair in rest.split())
        elif word == "USER":
            stage.user = rest
        elif word == "WORKDIR":
            stage.workdir = rest
            os.makedirs(stage.root + rest, exist_ok=True)
        else:
            assert word in ("VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"), word
    return stage


# ---- tests ----

class Skip(Exception):
    pass


def test_the_images_share_their_steps():
    cpu, cuda = ([f"{w} {r}" for w, r in instructions(p)]
                 for p in ("docker/Dockerfile", "docker/Dockerfile.cuda"))
    final = cpu[len(cpu) - 1 - cpu[::-1].index("FROM debian:12-slim"):]
    for line in final:
        if not line.startswith("HEALTHCHECK"):
            assert line in cuda, f"not in docker/Dockerfile.cuda: {line}"
    for text in (cpu, cuda):
        assert f"USER {USER}:{USER}" in text and any(t.startswith("HEALTHCHECK") for t in text)


def load_yaml(path):
    try:
        import yaml  # pylint: disable=import-outside-toplevel
    except ImportError as e:
        raise Skip(f"{path}: no python3-yaml") from e
    return list(yaml.safe_load_all(read(path)))


def test_compose_is_well_formed():
    compose = load_yaml("docker/compose.yaml")[0]
    for name, service in compose["services"].items():
        assert service["read_only"] and service["user"] == f"{USER}:{USER}", name
        assert service["cap_drop"] == ["ALL"] and "health" in service["healthcheck"]["test"], name
        assert os.path.exists(os.path.join(SOURCE, service["build"]["dockerfile"])), name
        named = {v.split(":")[0] for v in service["volumes"]} & set(compose["volumes"])
        assert named == set(compose["volumes"]), named
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"],
                                                 capture_output=True, check=False).returncode == 0:
        subprocess.run(["docker", "compose", "-f", "docker/compose.yaml", "--profile", "cpu",
                        "--profile", "cuda", "config", "--quiet"], cwd=SOURCE, check=True)


def test_kubernetes_is_well_formed():
    documents = load_yaml("docker/kubernetes.yaml")
    assert [d["kind"] for d in documents] == ["ConfigMap", "PersistentVolumeClaim", "StatefulSet",
                                              "Service"]
    pod = documents[2]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pod["securityContext"]["runAsUser"] == USER
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_unit_is_understood():
    if not shutil.which("systemd-analyze"):
        raise Skip("no systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sluiced.service")
        with open(path, "w", encoding="utf-8") as f:
            f.write(read("docker/sluiced.service").replace("/usr/bin/sluiced", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0 and "sluiced.service" not in done.stderr, done.stderr
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20",
                               path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_the_cpu_image_in_a_root_of_debian():
    if os.getuid() != 0 or not shutil.which("debootstrap"):
        raise Skip("the steps of docker/Dockerfile want root and debootstrap: NOT TRIED")
    folder = os.path.join(BUILD, "docker-test")
    os.makedirs(folder, exist_ok=True)
    stage = run_dockerfile("docker/Dockerfile", folder)
    for program in ("sluiced", "sluice-worker", "sluice"):
        done = chroot(stage.root, f"ldd /usr/bin/{program}", {}, capture_output=True, text=True)
        assert done.returncode == 0 and "not found" not in done.stdout, done.stdout
    synth = chroot(stage.root, "sluice synth-model --arch tiny-t2v --seed 1 "
                   "/var/lib/sluice/models/tiny", stage.env, stage.user, capture_output=True,
                   text=True)
    assert synth.returncode == 0, synth.stderr
    health = next(r for w, r in instructions("docker/Dockerfile") if w == "HEALTHCHECK")
    health = shlex.join(json.loads(health[health.index("CMD") + 3:]))
    entry = shlex.join(json.loads(dict(instructions("docker/Dockerfile"))["ENTRYPOINT"]))
    done = chroot(stage.root, f"""
{entry} --device cpu:1GiB >/tmp/log 2>&1 & daemon=$!
for i in $(seq 100); do {health} >/dev/null 2>&1 && break; sleep 0.2; done
{health} && sluice generate "a red circle" --model tiny --width 64 --height 64 --frames 5 -n 1 -o /tmp/a.mp4 \
 && test -s /tmp/a.mp4 && ! touch /usr/bin/x 2>/dev/null; code=$?
kill $daemon; wait $daemon || code=9; cat /tmp/log; exit $code""", stage.env, stage.user,
                  read_only=True, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    size = subprocess.run(["du", "-sm", stage.root], capture_output=True, text=True, check=True)
    print(f"  the image: {size.stdout.split()[0]} MiB")


def main():
    passed = failed = skipped = 0
    for name, test in list(globals().items()):
        if not name.startswith("test_"):
            continue
        start, word = time.monotonic(), "ok"
        try:
            test()
            passed += 1
        except Skip as e:
            skipped += 1
            word = f"SKIPPED ({e})"
        except Exception as e:  # pylint: disable=broad-except
            failed += 1
            word = f"FAILED: {e}\n      "
        print(f"{word} {name} {time.monotonic() - start:.1f} s", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 77 if passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

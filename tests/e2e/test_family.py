"""The model family through the daemon: text and image to video, every sampler,
attention and precision, and in each case the plan is what was used."""
import json
import os
import random
import shutil
import struct
import subprocess
import zipfile
import zlib

from harness import (BUILD, PATIENCE, SLUICE, Daemon, check_sums, made_once, png, run, synth,
                     wait_for)

SMALL = ["--width", "64", "--height", "48", "--frames", "9"]
T2V, I2V = "t2v", "i2v"


def make_models(root):
    synth("tiny-t2v", os.path.join(root, T2V))
    synth("tiny-i2v", os.path.join(root, I2V), 2)


def models():
    return made_once("e2e-family", make_models)


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}"""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])])
            for name, t in header.items()}


def to_bf16(tensor):
    """Of f32; made-up weights are exact in it."""
    _, shape, data = tensor
    out = bytearray(len(data) // 2)
    out[0::2], out[1::2] = data[2::4], data[3::4]
    assert not any(data[0::4]) and not any(data[1::4])
    return "BF16", shape, bytes(out)


def write_pth(path, tensors):
    """What torch.save makes of a state dict: a zip with a pickle and the storages."""
    def text(word):
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    def integer(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(integer(v) for v in values) + b"t"
    storage = {"F32": "FloatStorage", "BF16": "BFloat16Storage"}
    pickle = b"\x80\x02ccollections\nOrderedDict\n)R("
    for key, (name, (dtype, shape, data)) in enumerate(tensors.items()):
        count = len(data) // (4 if dtype == "F32" else 2)
        strides = [1] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            strides[i] = strides[i + 1] * shape[i + 1]
        pickle += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + \
            f"ctorch\n{storage[dtype]}\n".encode() + text(str(key)) + text("cpu") + \
            integer(count) + b"tQ" + integer(0) + numbers(shape) + numbers(strides) + \
            b"\x89ccollections\nOrderedDict\n)RtR"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        z.writestr("archive/data.pkl", pickle + b"u.")
        for key, (_, _, data) in enumerate(tensors.values()):
            z.writestr(f"archive/data/{key}", data)
        z.writestr("archive/version", "3\n")


def to_turbo(tensors):
    """The layout of TurboDiffusion's files: bf16 but for the blocks' norms, a patch
    embedding in two dimensions, and a projection for sparse attention."""
    out = {}
    for name, tensor in tensors.items():
        dtype, shape, data = tensor
        if name == "patch_embedding.weight":
            tensor = dtype, [shape[0], len(data) // 4 // shape[0]], data
        is_norm = ".norm" in name
        out[name] = tensor if is_norm else to_bf16(tensor)
    heads = tensors["blocks.0.modulation"][1][2] // 128
    assert heads == 2
    for i in range(sum(name.endswith("ffn.0.bias") for name in tensors)):
        local = f"blocks.{i}.self_attn.attn_op.local_attn.proj_l."
        weight = [(7 * k + i) % 11 - 5 for k in range(128 * 128)]
        out[local + "weight"] = "BF16", [128, 128], b"".join(
            struct.pack("<f", w / 64)[2:] for w in weight)
        out[local + "bias"] = "BF16", [128], bytes(256)
    return out


def rewrite(source, target, write):
    """A copy of a model with other transformer files, and without the mark of made-up ones."""
    for folder, _, names in os.walk(source):
        to = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(to, exist_ok=True)
        for name in names:
            path = os.path.join(folder, name)
            if name == "diffusion_pytorch_model.safetensors":
                write(to, read_safetensors(path))
            elif name.endswith((".safetensors", ".model")) or name == "config.json":
                shutil.copy(path, to)


def make_layouts(root):
    for name in (T2V, I2V):
        synth("tiny-" + name, os.path.join(root, "made-up-" + name), 3)
        made_up, turbo = (os.path.join(root, kind + name) for kind in ("made-up-", "turbo-pth-"))
        rewrite(made_up, os.path.join(root, "official-" + name),
                lambda to, t: shutil.copy(os.path.join(made_up, os.path.relpath(
                    to, os.path.join(root, "official-" + name)),
                    "diffusion_pytorch_model.safetensors"), to))
        rewrite(made_up, os.path.join(root, "official-pth-" + name),
                lambda to, t: write_pth(os.path.join(to, "model.pth"), t))
        rewrite(made_up, turbo, lambda to, t: write_pth(os.path.join(to, "model.pth"),
                                                        to_turbo(t)))
        for kind, target in (("safetensors", "turbo-"), ("quant", "quant-")):
            subprocess.run([SLUICE, "convert", "--to", kind, turbo, os.path.join(root, target + name)],
                           check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           timeout=120 * PATIENCE)


def generate(d, *args, prompt="a red circle"):
    """The job's JSON; planned and measured bytes are equal."""
    out = [] if "-o" in args else ["-o", "out.y4m"]
    result = d.cli("generate", prompt, *out, "--json", *args, limit_s=120)
    assert result.code == 0, result
    job = result.json["job"]
    assert job["planned_peak_bytes"] == job["measured_peak_bytes"] > 0, job
    assert job["planned_peak_bytes"] == job["plan"]["peak_bytes"], job
    check_sums(d.memory())
    return job


def differ(jobs):
    seen = [job["output_sha256"] for job in jobs]
    assert len(set(seen)) == len(seen), seen


def refused(d, field, *args, prompt="x"):
    result = d.cli("generate", prompt, "--json", *args)
    assert result.code == 2, result
    assert result.json["error"]["field"]["field"] == field, result
    return result.json["error"]["message"]


def test_samplers_and_guidance():
    unipc = ["--model", T2V, *SMALL, "--sampler", "unipc", "--steps", "3"]
    with Daemon(models=models()) as d:
        guided = generate(d, *unipc)
        request = guided["request"]
        assert request["sampler"] == "unipc" and request["guidance"] == 5, request
        assert request["shift"] == 5 and request["sigma_max"] == 0, request
        again = generate(d, *unipc, "--guidance", "5")
        assert again["output_sha256"] == guided["output_sha256"]
        differ([guided,
                generate(d, *unipc, "--guidance", "1"),
                generate(d, *unipc, "--guidance", "2.5"),
                generate(d, *unipc, "--negative", "text, watermark"),
                generate(d, *unipc, "--shift", "3"),
                generate(d, "--model", T2V, *SMALL, "--steps", "3")])
        plain = d.cli("plan", *unipc, "--guidance", "1", "--json").json["plan"]
        twice = d.cli("plan", *unipc, "--json").json["plan"]
        assert twice["activation_bytes"] >= plain["activation_bytes"] > 0
        # 50 steps is what an undistilled model would do
        assert d.cli("plan", "--model", T2V, "--sampler", "unipc", "--json").code == 0


def test_attention_and_precision():
    size = ["--model", T2V, "--width", "128", "--height", "128", "--frames", "9"]
    with Daemon(models=models()) as d:
        jobs = {}
        for attention in ("dense", "sla", "sagesla"):
            for precision in ("f32", "bf16", "int8", "fp8"):
                job = generate(d, *size, "--steps", "2", "--attention", attention, "--precision",
                               precision)
                assert job["request"]["attention"] == attention, job
                assert job["request"]["topk"] == (0 if attention == "dense" else 0.1), job
                jobs[attention, precision] = job
        # The made-up weights are exact in bf16, so f32 is no other video.
        differ(job for (_, precision), job in jobs.items() if precision != "f32")
        differ([jobs["sla", "bf16"], generate(d, *size, "--steps", "2", "--attention", "sla",
                                              "--topk", "1")])
        assert generate(d, *size, "--steps", "2")["output_sha256"] == \
            jobs["dense", "bf16"]["output_sha256"], "made-up weights were not tuned for SLA"


def test_every_layout():
    """.pth and .safetensors, official, Turbo and -quant files, with every attention: what is
    the same model gives the same bytes."""
    with Daemon(models=made_once("e2e-layouts", make_layouts)) as d:
        picture = png(os.path.join(d.folder, "a.png"), 64, 48)
        for task in (T2V, I2V):
            image = ["-i", picture] if task == I2V else []
            shape = [*SMALL, "--steps", "3", *image]

            def video(layout, *args):
                job = generate(d, "--model", f"{layout}-{task}", *shape, *args)
                return job["output_sha256"], job["request"]
            official, request = video("official")
            assert request["sampler"] == "unipc" and request["dialect"] == "official", request
            assert request["attention"] == "dense" and request["guidance"] > 1, request
            assert video("official-pth")[0] == official
            made_up, request = video("made-up")
            assert request["sampler"] == "sde" and request["dialect"] == "turbo", request
            assert video("official", "--sampler", "sde", "--dialect", "turbo")[0] == made_up
            assert video("official", "--sampler", "sde")[0] != made_up, "the dialect says nothing"

            sparse, request = video("turbo-pth")
            assert request["sampler"] == "sde" and request["attention"] == "sla", request
            assert request["precision"] == "bf16", request
            assert video("turbo")[0] == sparse
            assert video("turbo", "--attention", "dense")[0] == made_up
            assert video("made-up", "--attention", "sla")[0] != sparse, "the projection is not used"
            assert video("turbo", "--layer-norm", "turbo-compat")[0] == sparse, \
                "a width of 256 needs no padding"
            for attention in ("dense", "sla", "sagesla"):
                quant, request = video("quant", "--attention", attention)
                assert request["precision"] == "int8", request
                assert video("turbo-pth", "--attention", attention, "--precision",
                             "int8")[0] == quant
        assert "int8" in refused(d, "precision", "--model", "quant-t2v", *SMALL, "-p", "bf16")
        assert d.cli("load", "quant-t2v").code == 0
        assert d.cli("load", "quant-t2v", "-p", "bf16").code == 2


def test_the_vae_in_bf16():
    size = ["--width", "128", "--height", "128", "--frames", "9", "--steps", "2"]
    with Daemon(models=models()) as d:
        picture = png(os.path.join(d.folder, "a.png"), 64, 64)
        for task, image in ((T2V, []), (I2V, ["-i", picture])):
            wide = generate(d, "--model", task, *size, *image)
            half = generate(d, "--model", task, *size, *image, "--vae-precision", "bf16")
            differ([wide, half])
            assert wide["request"]["vae_precision"] == "f32", wide
            assert half["request"]["vae_precision"] == "bf16", half
            assert half["plan"]["activation_bytes"] < wide["plan"]["activation_bytes"]
        assert refused(d, "vae_precision", "--model", T2V, *size, "--vae-precision", "int8")
        assert d.cli("generate", "x", "--model", T2V, "-p", "f32", "--vae-precision",
                     "bf16").code == 2


def test_image_to_video():
    with Daemon(models=models()) as d:
        wide = png(os.path.join(d.folder, "wide.png"), 200, 100)
        other = png(os.path.join(d.folder, "other.png"), 200, 100, lambda x, y: (y % 256, 0, x % 256))
        base = ["--model", I2V, "--frames", "5", "--steps", "4"]
        sized = base + ["--width", "96", "--height", "64"]
        job = generate(d, *sized, "-i", wide)
        assert (job["request"]["width"], job["request"]["height"]) == (96, 64)
        phases = [p["phase"] for p in job["plan"]["phases"]]
        assert phases == ["encode_text", "encode_image", "denoise_high", "denoise_low", "decode"]
        differ([job, generate(d, *sized, "-i", other),
                generate(d, *sized, "-i", wide, "--boundary", "0.95"),
                generate(d, *sized, "-i", wide, "--sampler", "ode"),
                generate(d, *sized, "-i", wide, "--sampler", "unipc", "--guidance", "3",
                         "--guidance-low", "2"),
                generate(d, *sized, "-i", wide, "--attention", "sagesla", "--precision", "int8")])
        # one block of tokens is kept whole: nearly the dense video, or just that
        assert generate(d, *sized, "-i", wide, "--attention", "sla")["request"]["topk"] == 0.1
        # the default area of 128 x 128 in the picture's shape, as 16 multiples
        shaped = generate(d, *base, "-i", wide)
        assert (shaped["request"]["width"], shaped["request"]["height"]) == (176, 96), shaped
        shaped = generate(d, *sized, "-i", wide, "--sizing", "adaptive")
        assert (shaped["request"]["width"], shaped["request"]["height"]) == (112, 48), shaped
        plan = d.cli("plan", *base, "-i", wide, "--sizing", "fixed", "--json").json["plan"]
        assert d.cli("plan", *base, "--json").json["plan"] == plan, "a plan needs no image"
        short = generate(d, *sized, "-i", wide, "--steps", "2")
        assert "dit_low" not in [c["component"] for c in short["plan"]["components"]], short
        assert not [n for n in os.listdir(d.outputs) if n.startswith((".source", ".input"))]


def latent_shape(path):
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    assert set(header) - {"__metadata__"} == {"latent"} and header["latent"]["dtype"] == "F32", header
    return header["latent"]["shape"]


def test_a_latent_now_and_the_video_later():
    with Daemon(models=models()) as d:
        picture = png(os.path.join(d.folder, "a.png"), 64, 64)
        for args in (["--model", T2V, *SMALL],
                     ["--model", T2V, *SMALL, "--sampler", "unipc", "--steps", "3"],
                     ["--model", I2V, *SMALL, "-i", picture]):
            whole = generate(d, *args)
            first = generate(d, *args, "-o", "out.safetensors")
            assert first["output"] == "latent" and "decode" not in \
                [p["phase"] for p in first["plan"]["phases"]], first
            assert latent_shape(os.path.join(d.folder, "out.safetensors")) == [16, 3, 6, 8]
            decode = ["decode", first["job_id"], "-o", "b.y4m", "--json"]
            result = d.cli(*decode, "--request-id", "again-" + first["job_id"])
            assert result.code == 0, result
            job = result.json["job"]
            assert job["output_sha256"] == whole["output_sha256"], (job, whole)
            assert job["planned_peak_bytes"] == job["measured_peak_bytes"] > 0, job
            assert job["request"]["latent_of"] == first["job_id"], job
            assert [p["phase"] for p in job["plan"]["phases"]] == ["decode"], job
            assert [c["component"] for c in job["plan"]["components"]] == ["vae"], job
            again = d.cli(*decode, "--request-id", "again-" + first["job_id"])
            assert again.json["job"]["job_id"] == job["job_id"], again
            check_sums(d.memory())
        assert d.cli("decode", whole["job_id"]).code == 1, "it has no latent"
        assert d.cli("decode", "nothing").code == 1
        assert d.cli("decode", first["job_id"], "--format", "latent").code == 2
        os.unlink(os.path.join(d.outputs, first["job_id"] + ".safetensors"))
        assert "cleaned away" in d.cli("decode", first["job_id"]).err
        assert not [n for n in os.listdir(d.outputs) if n.startswith((".source", ".input"))]


def test_a_latent_outlives_its_output_and_a_restart():
    """A decode that waits has its own hold on the latent."""
    with Daemon(models=models()) as d:
        args = ["--model", T2V, "--width", "128", "--height", "128", "--frames", "33"]
        want = generate(d, *args)["output_sha256"]
        latent = generate(d, *args, "-o", "x.safetensors")["job_id"]
        other = d.submit("--model", T2V, "--width", "256", "--height", "256", "--frames", "81",
                         "--priority", "9")
        result = d.cli("decode", latent, "--format", "y4m", "--detach", "--json")
        assert result.code == 0, result
        job = result.json["job"]["job_id"]
        os.unlink(os.path.join(d.outputs, latent + ".safetensors"))
        d.kill()
        d.start()
        assert d.cli("cancel", other).code == 0
        assert d.wait_state(job, ["done", "failed"], 120)["output_sha256"] == want


def png_size(path):
    with open(path, "rb") as f:
        head = f.read(24)
    assert head[:8] == b"\x89PNG\r\n\x1a\n", head
    return struct.unpack(">II", head[16:])


def test_previews():
    size = ["--width", "160", "--height", "128", "--frames", "17"]
    with Daemon(models=models()) as d:
        plain = generate(d, "--model", T2V, *size)
        shown = generate(d, "--model", T2V, *size, "--preview", "p.png")
        assert shown["output_sha256"] == plain["output_sha256"]
        path = os.path.join(d.folder, "p.png")
        assert png_size(path) == (20, 16)
        subprocess.run(["ffprobe", "-v", "error", path], check=True, timeout=30)
        job = d.submit("--model", T2V, *size, "--sampler", "unipc", "--steps", "30", "--preview",
                       "unused.png")
        result = d.cli("watch", job, "--preview", "w.png")
        assert result.code == 0 and png_size(os.path.join(d.folder, "w.png")) == (20, 16), result
        assert not os.path.exists(os.path.join(d.folder, "w.png.part"))
        assert d.cli("watch", plain["job_id"], "--preview", "none.png").code == 0
        assert not os.path.exists(os.path.join(d.folder, "none.png")), "it was not asked for"


def test_images_that_are_refused():
    with Daemon(models=models()) as d:
        base = ["--model", I2V, *SMALL]
        picture = png(os.path.join(d.folder, "a.png"), 20, 10)
        with open(picture, "rb") as f:
            whole = f.read()
        cut = os.path.join(d.folder, "cut.png")
        with open(cut, "wb") as f:
            f.write(whole[:-20])
        text = os.path.join(d.folder, "text.png")
        with open(text, "w", encoding="utf-8") as f:
            f.write("not a picture")
        bomb = png(os.path.join(d.folder, "bomb.png"), 30000, 30000, rows=0)
        lie = png(os.path.join(d.folder, "lie.png"), 4000, 4000, rows=2)
        assert "none is given" in refused(d, "image", *base)
        for path in (cut, text, lie):
            assert refused(d, "image", *base, "-i", path)
        assert "pixels" in refused(d, "image", *base, "-i", bomb)
        assert refused(d, "image", "--model", T2V, *SMALL, "-i", picture)
        assert refused(d, "sizing", "--model", T2V, *SMALL, "--sizing", "adaptive")
        assert not [n for n in os.listdir(d.outputs) if n.startswith((".source", ".input"))]
        assert d.cli("jobs", "--json").json["jobs"] == []
        generate(d, *base, "-i", picture)


def test_a_large_picture_costs_what_its_frames_do():
    """33 million pixels in; the daemon's memory stays bounded, the plan is that of the frames."""
    with Daemon(models=models()) as d:
        row = bytes(range(256)) * 90  # 7680 pixels of RGB
        raw = zlib.compressobj(9)
        data = b"".join(raw.compress(b"\0" + row) for _ in range(4320)) + raw.flush()
        path = os.path.join(d.folder, "8k.png")

        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + \
                struct.pack(">I", zlib.crc32(kind + body))
        with open(path, "wb") as f:
            f.write(b"\x89PNG\r\n\x1a\n" +
                    chunk(b"IHDR", struct.pack(">IIBBBBB", 7680, 4320, 8, 2, 0, 0, 0)) +
                    chunk(b"IDAT", data) + chunk(b"IEND", b""))
        small = generate(d, "--model", I2V, *SMALL, "-i",
                         png(os.path.join(d.folder, "s.png"), 64, 48))
        large = generate(d, "--model", I2V, *SMALL, "-i", path)
        assert large["planned_peak_bytes"] == small["planned_peak_bytes"]
        with open(f"/proc/{d.process.pid}/status", encoding="utf-8") as f:
            peak_kib = int(next(line for line in f if line.startswith("VmHWM")).split()[1])
        assert peak_kib < (160 << 10) * (PATIENCE if PATIENCE > 1 else 1), peak_kib


def test_large_files_are_uploaded():
    with Daemon(models=models()) as d:
        base = ["--model", I2V, *SMALL]
        noise = random.Random(5).randbytes(600 * 500 * 3)
        path = png(os.path.join(d.folder, "noise.png"), 600, 500,
                   lambda x, y: noise[(y * 600 + x) * 3:(y * 600 + x) * 3 + 3])
        assert os.path.getsize(path) > 800000  # more than a piece
        first = generate(d, *base, "-i", path)
        files = [n for n in os.listdir(d.outputs) if n.startswith(".input-file-")]
        assert len(files) == 1, files
        assert generate(d, *base, "-i", path)["output_sha256"] == first["output_sha256"]
        assert [n for n in os.listdir(d.outputs) if n.startswith(".input")] == files
        assert d.cli("plan", *base, "-i", path, "--sizing", "adaptive").code == 0
        os.truncate(path, 700000)
        assert refused(d, "image", *base, "-i", path)
        big = os.path.join(d.folder, "big.png")
        with open(big, "wb") as f:
            f.truncate((64 << 20) + 1)
        assert d.cli("generate", "x", *base, "-i", big).code == 2
        d.stop()
        d.start()
        assert not [n for n in os.listdir(d.outputs) if n.startswith(".input")]


def test_misplaced_fields_are_named():
    with Daemon(models=models()) as d:
        for field, *args in (("guidance", "--guidance", "3"), ("shift", "--shift", "3"),
                             ("negative_prompt", "--negative", "x"), ("topk", "--topk", "0.2"),
                             ("boundary", "--boundary", "0.5"),
                             ("sigma_max", "--sampler", "unipc", "--sigma-max", "9"),
                             ("steps", "--sampler", "unipc", "--steps", "201"),
                             ("guidance_low", "--sampler", "unipc", "--guidance-low", "2")):
            assert refused(d, field, "--model", T2V, *SMALL, *args)
        assert d.cli("generate", "x", "--model", T2V, "--attention", "full").code == 2


def test_prompts_are_kept_nowhere():
    words = ("zebrafish", "quicksilver")
    with Daemon(models=models()) as d:
        generate(d, "--model", T2V, *SMALL, "--sampler", "unipc", "--steps", "2", "--negative",
                 words[1], prompt=words[0])
        job = d.submit("--model", T2V, "--width", "512", "--height", "512", "--frames", "81",
                       "--sampler", "unipc", "--steps", "40", "--negative", words[1])
        d.wait_state(job, ["denoising", "encoding"])
        kept = d.log().encode()
        for name in os.listdir(d.outputs):
            with open(os.path.join(d.outputs, name), "rb") as f:
                kept += f.read()
        for word in words:
            assert word.encode() not in kept, word
        assert d.cli("cancel", job).code == 0


def test_a_restart_keeps_image_and_negative_prompt():
    args = ["--model", I2V, "--width", "128", "--height", "96", "--frames", "17", "--sampler",
            "unipc", "--steps", "8", "--guidance", "3", "--negative", "grey"]
    with Daemon(models=models()) as d:
        picture = png(os.path.join(d.folder, "a.png"), 64, 64)
        want = generate(d, *args, "-i", picture)["output_sha256"]
        result = d.cli("generate", "a red circle", *args, "-i", picture, "--format", "y4m",
                       "--detach", "--json")
        assert result.code == 0, result
        job = result.json["job"]["job_id"]
        wait_for("a step", lambda: d.job(job)["step"] >= 2)
        d.kill()
        assert [n for n in os.listdir(d.outputs) if n == f".source-{job}"]
        d.start()
        done = d.wait_state(job, ["done", "failed"], 120)
        assert done["output_sha256"] == want, done
        assert done["request"]["guidance"] == 3 and done["request"]["sampler"] == "unipc"
        assert not [n for n in os.listdir(d.outputs) if n.startswith((".source", ".latent"))]


def test_budget_and_daemon_agree():
    with Daemon(models=models()) as d:
        for args in (["--model", I2V], ["--model", I2V, "--sampler", "unipc", "--steps", "4"],
                     ["--model", T2V, "--attention", "sla", "--precision", "int8"]):
            asked = d.cli("plan", *args, "--json")
            path = os.path.join(models(), args[1])
            offline = subprocess.run([SLUICE, "budget", "--model", path, *args[2:], "--device",
                                      "cpu:2GiB", "--json"], capture_output=True, text=True,
                                     timeout=60 * PATIENCE, check=False)
            assert asked.code == offline.returncode == 0, (asked, offline)

            there, here = asked.json["plan"], json.loads(offline.stdout)["plan"]
            for name in ("activation_bytes", "weight_bytes", "phases"):
                assert there[name] == here[name], (name, there, here)


run(globals())

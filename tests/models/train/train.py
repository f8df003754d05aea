#!/usr/bin/env python3
"""Trains the shapes model: autoencoder, text encoder, transformers; then
distils them to few steps and to sparse attention.

    python3 tests/models/train/train.py --out DIR [--recipe gpu|cpu] [--stages vae,t2v,...]

Stages, in order: vae, t2v (text encoder and transformer together), t2v-few (four
rCM steps, dense and sparse), i2v, i2v-few.  Each ends with DIR/<stage>.pt (under
16 MiB) and starts from what is there: a stage that has its file is skipped, and
one that was interrupted goes on from DIR/<stage>.part.pt.  Then export.py writes
the model directories.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import random
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import nets  # noqa: E402
import semantic  # noqa: E402
import shapes  # noqa: E402
from tokens import TEXT_LEN, Tokenizer  # noqa: E402

DIM = dict(vae=8, text=128, text_hidden=256, text_heads=2, text_layers=2, vocab=256,
           dit=256, hidden=512, heads=2, layers=3)
SPARSE_MODES = {"sla": (128, 64, 0.1), "sagesla": (64, 128, 0.1)}

RECIPES = {  # seconds are upper bounds: a stage ends at its steps or its time, whichever is first
    "gpu": {
        "vae": dict(steps=16000, batch=16, rate=2.5e-3, seconds=320),
        "t2v": dict(steps=14000, batch=160, rate=1.5e-3, seconds=200, clips=40000),
        "t2v-few": dict(steps=5000, batch=128, rate=5e-4, seconds=140, clips=40000),
        "i2v": dict(steps=5000, batch=160, rate=1e-3, seconds=80, clips=20000),
        "i2v-few": dict(steps=3000, batch=128, rate=5e-4, seconds=80, clips=20000),
    },
    "cpu": {
        "vae": dict(steps=1500, batch=4, rate=2e-3, seconds=1200, clips=0),
        "t2v": dict(steps=4000, batch=24, rate=1.5e-3, seconds=1200, clips=4000),
        "t2v-few": dict(steps=700, batch=16, rate=5e-4, seconds=500, clips=4000),
        "i2v": dict(steps=1000, batch=24, rate=1e-3, seconds=300, clips=2000),
        "i2v-few": dict(steps=300, batch=16, rate=5e-4, seconds=300, clips=2000),
    },
}


def rcm_times(sigma_max, steps=4):
    angles = [math.atan(sigma_max), 1.5, 1.4, 1.0][:steps]
    return [math.tan(a) / (1 + math.tan(a)) for a in angles] + [0.0]


def network_time(t):
    """What the network is given for time t: 1000 t, rounded to bf16 as at inference."""
    return (1000.0 * t).bfloat16().float()


# ---- clips ----


class Renderer:
    """Scenes to video in [-1, 1], [B, 3, FRAMES, H, W], on the device."""

    def __init__(self, device):
        self.device = device
        self.templates = torch.tensor(np.stack([shapes.template(s) for s in shapes.SHAPES]),
                                      device=device)[:, None]
        y, x = torch.meshgrid(torch.arange(shapes.HEIGHT, device=device) + 0.5,
                              torch.arange(shapes.WIDTH, device=device) + 0.5, indexing="ij")
        self.at = torch.stack([x, y], dim=-1)

    def __call__(self, scenes):
        b, f = len(scenes), shapes.FRAMES
        ground = torch.tensor([shapes.BACKGROUNDS[s.background] for s in scenes],
                              device=self.device, dtype=torch.float32)
        video = ground[:, :, None, None, None].expand(
            b, 3, f, shapes.HEIGHT, shapes.WIDTH).clone()
        for i in range(2):
            who = [k for k, s in enumerate(scenes) if len(s.items) > i]
            if not who:
                continue
            path = torch.tensor(np.stack([scenes[k].path(i) for k in who]), device=self.device,
                                dtype=torch.float32)  # [n, f, 3]
            items = [scenes[k].items[i] for k in who]
            kind = torch.tensor([shapes.SHAPES.index(it.shape) for it in items],
                                device=self.device)
            color = torch.tensor([shapes.COLORS[it.color] for it in items], device=self.device,
                                 dtype=torch.float32)
            grid = (self.at - path[..., None, None, :2]) / (
                path[..., None, None, 2:] * shapes.TEMPLATE_REACH)
            n = len(who)
            cover = F.grid_sample(
                self.templates[kind].repeat_interleave(f, 0), grid.flatten(0, 1),
                align_corners=False)
            cover = cover.reshape(n, 1, f, shapes.HEIGHT, shapes.WIDTH)
            index = torch.tensor(who, device=self.device)
            video[index] = video[index] * (1 - cover) + color[:, :, None, None, None] * cover
        return (video + 0.5).floor().clamp(0, 255) / 127.5 - 1


def scenes_of(count, seed):
    rng = random.Random(seed)
    scenes = [shapes.sample_scene(rng) for _ in range(count)]
    return scenes, [[shapes.describe(s, rng) for _ in range(2)] for s in scenes]


class Clips:
    """Encoded scenes with their sentences' ids; made once for a stage."""

    def __init__(self, run, count, seed, images):
        scenes, texts = scenes_of(count, seed)
        self.ids = torch.tensor(np.array([[run.tokenizer(t) for t in ts] for ts in texts]),
                                device=run.device)
        latents, firsts = [], []
        with torch.no_grad(), run.autocast():
            for i in range(0, count, 64):
                video = run.render(scenes[i:i + 64])
                latents.append(run.vae.encode(video).to(run.store))
                if images:
                    video[:, :, 1:] = 0
                    firsts.append(run.vae.encode(video).to(run.store))
        self.latents = torch.cat(latents)
        self.images = torch.cat(firsts) if images else None
        run.say(f"{count} clips, latents mean {self.latents.float().mean():.3f} "
                f"deviation {self.latents.float().std():.3f}")

    def batch(self, n):
        i = torch.randint(len(self.latents), (n,), device=self.latents.device)
        ids = self.ids[i, torch.randint(self.ids.shape[1], (n,), device=i.device)]
        return (self.latents[i].float(), ids,
                self.images[i].float() if self.images is not None else None)


# ---- one training run ----


class Run:
    def __init__(self, args):
        self.out = args.out
        self.recipe = RECIPES[args.recipe]
        self.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device != "cpu"
        self.store = torch.bfloat16 if self.on_gpu else torch.float32
        self.scale = args.scale
        self.seconds = args.seconds
        self.begin = time.time()
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.tokenizer = Tokenizer(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..",
                                                "shapes/shapes-t2v/google/umt5-xxl/spiece.model"))
        self.render = Renderer(self.device)
        self.clips = {}
        self.vae = nets.Vae(DIM["vae"]).to(self.device)
        self.text = nets.Umt5(DIM["vocab"], DIM["text"], DIM["text_hidden"], DIM["text_heads"],
                              DIM["text_layers"]).to(self.device)
        self.dit = {name: nets.Dit(DIM["dit"], DIM["hidden"], DIM["heads"], DIM["layers"], inputs,
                                   DIM["text"]).to(self.device)
                    for name, inputs in (("t2v", 16), ("i2v", 36))}

    def autocast(self):
        return torch.autocast("cuda", torch.bfloat16, enabled=self.on_gpu)

    def say(self, text):
        print(f"[{time.time() - self.begin:6.1f}s] {text}", flush=True)

    def path(self, name):
        return os.path.join(self.out, name)

    def settings(self, stage):
        s = dict(self.recipe[stage])
        s["steps"] = max(2, int(s["steps"] * self.scale))
        s["seconds"] = max(1.0, s["seconds"] * max(self.scale, 0.02) * self.seconds)
        if s.get("clips"):
            s["clips"] = max(64, int(s["clips"] * min(1.0, self.scale * 4)))
        return s

    def fit(self, stage, modules, loss_of, settings):
        """Adam with warm-up and a decay that ends with the steps or the time; the
        result is the moving average of the weights.  Goes on from a .part.pt."""
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=settings["rate"], betas=(0.9, 0.98),
                                      weight_decay=1e-4, fused=self.on_gpu)
        average = [p.detach().clone() for p in parameters]
        part = self.path(f"{stage}.part.pt")
        done, used = 0.0, 0.0
        if os.path.exists(part):
            state = torch.load(part, map_location=self.device)
            for p, a, saved in zip(parameters, average, state["weights"]):
                p.data.copy_(saved)
                a.copy_(saved)
            used = state["seconds"]
            done = state["done"]
            self.say(f"{stage}: goes on at {100 * done:.0f} %")
        start, step, shown, saved_at = time.time() - used, int(done * settings["steps"]), 0.0, time.time()
        recent = []
        while True:
            done = max(step / settings["steps"], (time.time() - start) / settings["seconds"])
            if done >= 1:
                break
            warm = min(1.0, (step + 1) / 200)
            rate = settings["rate"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimiser.param_groups:
                group["lr"] = rate
            with self.autocast():
                loss = loss_of(step, done)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            decay = min(0.998, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.data for p in parameters], 1 - decay)
            step += 1
            if step % 50 == 0:
                recent.append(float(loss.detach()))
                if not math.isfinite(recent[-1]):
                    raise SystemExit(f"{stage}: loss is {recent[-1]} at step {step}")
                if time.time() - shown > 8:
                    shown = time.time()
                    self.say(f"{stage}: step {step} loss {np.mean(recent[-10:]):.4f} "
                             f"({100 * done:.0f} %)")
                if not self.on_gpu and time.time() - saved_at > 120:
                    saved_at = time.time()
                    torch.save({"weights": average, "done": done, "seconds": time.time() - start},
                               part)
        for p, a in zip(parameters, average):
            p.data.copy_(a)
        self.say(f"{stage}: {step} steps, loss {np.mean(recent[-10:]) if recent else float('nan'):.4f}")
        if os.path.exists(part):
            os.remove(part)

    # ---- stages ----

    def train_vae(self, settings):
        rng = random.Random(1)

        def loss_of(step, done):
            video = self.render([shapes.sample_scene(rng) for _ in range(settings["batch"])])
            if step % 8:  # nine frames of a quarter of the picture do as well, far faster
                video = torch.stack([self.cut(clip, rng) for clip in video])
            flat = video[:, :, :1, :1, :1].expand_as(video)
            weight = 1 + 8 * F.max_pool3d(((video - flat).abs().amax(1, keepdim=True) > 0.05).float(),
                                          (1, 9, 9), stride=1, padding=(0, 4, 4))
            blank = settings["batch"] // 8  # clips of an image and grey, as image-to-video has them
            if blank:
                video[:blank, :, 1:] = 0
                weight[:blank] = 1
            moments = self.vae.moments(video).float()
            mu, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(-12, 4)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
            seen = self.vae.picture(z).float()
            error = (seen - video).abs()
            error = error + 2 * error.square()
            kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()
            return (weight * error).mean() + 3e-3 * kl

        self.fit("vae", [self.vae], loss_of, settings)
        self.fold_statistics()

    @staticmethod
    def cut(clip, rng, frames=9, side=64):
        """A part of a clip [3, F, H, W] that holds some of an object, if it has one near."""
        first = rng.randrange(clip.shape[1] - frames + 1)
        spots = (rng.randrange(16, 49), rng.randrange(0, 65))  # objects are about the middle row
        y, x = spots if rng.random() < 0.8 else (rng.randrange(0, 65), rng.randrange(0, 65))
        return clip[:, first:first + frames, y:y + side, x:x + side]

    @torch.no_grad()
    def fold_statistics(self):
        """Latents get the published mean and deviation per channel: the affine map
        goes into the 1x1x1 convolutions around the latent."""
        scenes, _ = scenes_of(256, 77)
        mu = []
        for i in range(0, 256, 32):
            with self.autocast():
                mu.append(self.vae.moments(self.render(scenes[i:i + 32]))[:, :16].float())
        mu = torch.cat(mu)
        mean, std = mu.mean((0, 2, 3, 4)), mu.std((0, 2, 3, 4))
        wan_mean = torch.tensor(nets.WAN_MEAN, device=mean.device)
        wan_std = torch.tensor(nets.WAN_STD, device=mean.device)
        by = wan_std / std
        first, second = self.vae.conv1, self.vae.conv2
        first.weight[:16] *= by[:, None, None, None, None]
        first.bias[:16] = (first.bias[:16] - mean) * by + wan_mean
        second.bias += (second.weight[:, :, 0, 0, 0] * (mean - wan_mean / by)).sum(1)
        second.weight /= by[None, :, None, None, None]

    def clips_of(self, name, count):
        if name not in self.clips:
            self.clips = {name: Clips(self, count, 11 if name == "t2v" else 12, name == "i2v")}
        return self.clips[name]

    def inputs(self, name, x, images):
        if name == "t2v":
            return x
        mask = torch.zeros(x.shape[0], 4, *x.shape[2:], device=x.device)
        mask[:, :, 0] = 1
        return torch.cat([x, mask, images], dim=1)

    def train_flow(self, name, settings):
        clips = self.clips_of(name, settings["clips"])
        dit = self.dit[name]
        for p in self.text.parameters():
            p.requires_grad = name == "t2v"

        def loss_of(step, done):
            x0, ids, images = clips.batch(settings["batch"])
            n = len(x0)
            u = torch.rand(n, device=x0.device)
            shift = torch.where(torch.rand(n, device=x0.device) < 0.6, 6.0, 1.0)
            t = (shift * u / (1 + (shift - 1) * u)).clamp(0.002, 0.9975)
            noise = torch.randn_like(x0)
            tt = t[:, None, None, None, None]
            x = (1 - tt) * x0 + tt * noise
            v = dit(self.inputs(name, x, images), network_time(t), self.text(ids))
            return (v.float() - (noise - x0)).square().mean()

        self.fit(name, [dit, self.text] if name == "t2v" else [dit], loss_of, settings)

    def train_few(self, name, settings):
        """Few steps: the student learns where the teacher's flow ends, from states that
        it reaches itself in the sampler's own steps, with dense and sparse attention."""
        clips = self.clips_of(name, settings["clips"])
        student, teacher = self.dit[name], copy.deepcopy(self.dit[name]).requires_grad_(False)
        for p in self.text.parameters():
            p.requires_grad = False
        times = rcm_times(80 if name == "t2v" else 200)
        modes = [None, SPARSE_MODES["sla"], None, SPARSE_MODES["sagesla"]]
        rng = random.Random(5)

        def predict(net, x, t, text, images, mode):
            tt = network_time(torch.full((len(x),), t, device=x.device))
            return x - t * net(self.inputs(name, x, images), tt, text, mode).float()

        @torch.no_grad()
        def flow_end(x, t, text, images, steps):
            """Heun from t to 0 along the teacher's flow; steps finer where it bends."""
            ts = [t * (1 - k / steps) ** 1.5 for k in range(steps + 1)]
            for a, b in zip(ts, ts[1:]):
                def v(y, at):
                    tt = network_time(torch.full((len(y),), at, device=y.device))
                    return teacher(self.inputs(name, y, images), tt, text).float()
                va = v(x, a)
                y = x - (a - b) * va
                x = y if b == 0 else x - (a - b) * 0.5 * (va + v(y, b))
            return x

        def loss_of(step, done):
            x0, ids, images = clips.batch(settings["batch"])
            mode = modes[step % len(modes)]
            i = rng.choice([0, 1, 2, 2, 3, 3])
            with torch.no_grad():
                text = self.text(ids)
                t = times[i]
                if rng.random() < 0.5 and i > 0:  # a state of its own making
                    x = torch.randn_like(x0) * times[0]
                    ode = rng.random() < 0.5
                    for j in range(i):
                        x0_seen = predict(student, x, times[j], text, images, mode)
                        if ode:
                            x = x0_seen + (times[j + 1] / times[j]) * (x - x0_seen)
                        else:
                            x = (1 - times[j + 1]) * x0_seen + times[j + 1] * torch.randn_like(x0)
                else:
                    x = (1 - t) * x0 + t * torch.randn_like(x0)
                target = flow_end(x, t, text, images, 6 if self.on_gpu else 4)
            seen = predict(student, x, t, text, images, mode)
            return (seen - target).square().mean() + 0.5 * (seen - target).abs().mean()

        self.fit(f"{name}-few", [student], loss_of, settings)

    # ---- checking ----

    @torch.no_grad()
    def sample(self, name, ids, images, steps, ode, mode, seed):
        generator = torch.Generator(self.device).manual_seed(seed)
        times = rcm_times(80 if name == "t2v" else 200, steps)
        shape = (len(ids), 16, 1 + (shapes.FRAMES - 1) // 4, shapes.HEIGHT // 8, shapes.WIDTH // 8)

        def noise():
            return torch.randn(shape, device=self.device, generator=generator)

        x = noise() * times[0]
        with self.autocast():
            text = self.text(ids)
            for a, b in zip(times, times[1:]):
                tt = network_time(torch.full((len(ids),), a, device=self.device))
                v = self.dit[name](self.inputs(name, x, images), tt, text, mode).float()
                x = x - (a - b) * v if ode else (1 - b) * (x - a * v) + b * noise()
            video = torch.cat([self.vae.decode(x[i:i + 16]).float() for i in range(0, len(x), 16)])
        return ((video.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().byte().permute(0, 2, 3, 4, 1).cpu().numpy()

    def check(self, name, count, table):
        rng = random.Random(1234)
        scenes = []
        while len(scenes) < count:
            scene = shapes.sample_scene(rng, allow_held_out=True)
            held = any(shapes.held_out(i.color, i.shape) for i in scene.items)
            if held == (len(scenes) % 2 == 0):
                scenes.append(scene)
        ids = torch.tensor(np.array([self.tokenizer(shapes.describe(s, rng)) for s in scenes]),
                           device=self.device)
        images = None
        if name == "i2v":
            with torch.no_grad(), self.autocast():
                video = self.render(scenes)
                video[:, :, 1:] = 0
                images = self.vae.encode(video).float()
        strips = {}
        for mode_name, steps, ode in table:
            videos = self.sample(name, ids, images, steps, ode, SPARSE_MODES.get(mode_name), 3)
            total, unseen = {}, {}
            for scene, seen in zip(scenes, self.readers.map(semantic.read_clip, videos)):
                score = semantic.judge(scene, seen)
                semantic.add(total, score)
                if any(shapes.held_out(i.color, i.shape) for i in scene.items):
                    semantic.add(unseen, score)
            figures = " ".join(f"{a} {100 * r / n:.0f} ({100 * unseen[a][0] / max(1, unseen[a][1]):.0f})"
                               for a, (r, n) in total.items())
            self.say(f"{name} {mode_name} {steps} steps {'ode' if ode else 'sde'}: {figures}")
            strips[f"{mode_name}-{steps}-{'ode' if ode else 'sde'}"] = videos
        return scenes, strips


def save_strip(path, videos, rows=16):
    from PIL import Image
    Image.fromarray(np.concatenate([np.concatenate(list(v[::4]), axis=1) for v in videos[:rows]],
                                   axis=0)).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stages", default="vae,t2v,t2v-few,i2v,i2v-few")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the recipe, to try it out")
    parser.add_argument("--seconds", type=float, default=1.0, help="fraction of the time limits")
    parser.add_argument("--start", help="a folder of .pt files whose weights stages begin with")
    parser.add_argument("--check", type=int, default=64, help="clips read back after each stage")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    run = Run(args)
    run.readers = multiprocessing.get_context("spawn").Pool(min(12, os.cpu_count()))
    trained = {"vae": ["vae"], "t2v": ["text", "t2v"], "t2v-few": ["t2v"], "i2v": ["i2v"],
               "i2v-few": ["i2v"]}
    modules = {"vae": run.vae, "text": run.text, "t2v": run.dit["t2v"], "i2v": run.dit["i2v"]}
    for stage in args.stages.split(","):
        file = run.path(f"{stage}.pt")
        if os.path.exists(file):
            state = torch.load(file, map_location=run.device)
            for name in trained[stage]:
                modules[name].load_state_dict(state[name])
            run.say(f"{stage}: from {file}")
            continue
        begun = args.start and os.path.join(args.start, f"{stage}.pt")
        if begun and os.path.exists(begun):
            state = torch.load(begun, map_location=run.device)
            for name in trained[stage]:
                modules[name].load_state_dict(state[name])
            run.say(f"{stage}: begins with {begun}")
        settings = run.settings(stage)
        if stage == "vae":
            run.train_vae(settings)
        elif stage in ("t2v", "i2v"):
            if stage == "i2v" and not os.path.exists(run.path("i2v.part.pt")):
                grown = run.dit["t2v"].state_dict()
                weight = torch.zeros_like(run.dit["i2v"].patch_embedding.weight)
                weight[:, :64] = grown["patch_embedding.weight"]
                run.dit["i2v"].load_state_dict({**grown, "patch_embedding.weight": weight})
            run.train_flow(stage, settings)
        else:
            run.train_few(stage.split("-")[0], settings)
        torch.save({name: modules[name].state_dict() for name in trained[stage]}, file)
        if args.check and stage == "vae":
            scenes, _ = scenes_of(16, 99)
            with torch.no_grad(), run.autocast():
                video = run.render(scenes)
                seen = run.vae.decode(run.vae.encode(video)).float().clamp(-1, 1)
            error = ((seen - video) / 2).square().mean()
            run.say(f"vae: PSNR {-10 * math.log10(float(error)):.1f} dB")
            save_strip(run.path("vae.png"),
                       ((seen + 1) * 127.5 + 0.5).byte().permute(0, 2, 3, 4, 1).cpu().numpy())
        elif args.check:
            name = stage.split("-")[0]
            table = [("dense", 4, False), ("dense", 4, True)]
            if stage.endswith("few"):
                table += [("dense", 2, False), ("sla", 4, False), ("sagesla", 4, False),
                          ("sla", 4, True), ("sagesla", 2, True)]
            _, strips = run.check(name, args.check, table)
            for key, videos in strips.items():
                if key in ("dense-4-sde", "sla-4-sde"):
                    save_strip(run.path(f"{stage}-{key}.png"), videos)
    with open(run.path("train.json"), "w") as f:
        json.dump({"recipe": args.recipe, "seed": args.seed, "scale": args.scale,
                   "seconds": round(time.time() - run.begin)}, f)
    run.readers.terminate()


if __name__ == "__main__":
    main()

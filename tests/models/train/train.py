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
import functools
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
        "vae": dict(steps=40000, batch=32, rate=2.5e-3, seconds=150, part=(64, 9), parts=7, whole=8),
        "t2v": dict(steps=60000, batch=192, rate=1.2e-3, seconds=300, clips=32000),
        "t2v-few": dict(steps=12000, batch=128, rate=4e-4, seconds=120, clips=32000),
        "i2v": dict(steps=20000, batch=192, rate=8e-4, seconds=150, clips=16000),
        "i2v-few": dict(steps=8000, batch=128, rate=4e-4, seconds=120, clips=16000),
    },
    # The autoencoder sees all frames of small parts, the flow what four steps ask for alone.
    # From nothing t2v falls short in these times: shapes/README.md has by how much.
    "cpu": {
        "vae": dict(steps=100000, batch=5, rate=3e-3, seconds=1500, part=(32, 17), parts=23, whole=1),
        "t2v": dict(steps=20000, batch=16, rate=1.5e-3, seconds=1400, clips=4000, four_times=True),
        "t2v-few": dict(steps=20000, batch=16, rate=7e-4, seconds=1500, clips=4000),
        "i2v": dict(steps=20000, batch=16, rate=1e-3, seconds=600, clips=2000, four_times=True),
        "i2v-few": dict(steps=20000, batch=16, rate=7e-4, seconds=1200, clips=2000),
    },
}


def sampler_times(name, steps=4):
    """Of the rCM sampler, without the 0 in the end."""
    angles = [math.atan(80 if name == "t2v" else 200), 1.5, 1.4, 1.0][:steps]
    return [math.tan(a) / (1 + math.tan(a)) for a in angles]


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
        self.at = torch.arange(shapes.WIDTH, device=device) + 0.5
        self.frame = torch.arange(shapes.FRAMES, device=device)
        self.grounds = torch.tensor(list(shapes.BACKGROUNDS.values()), device=device).float()
        self.colors = torch.tensor(list(shapes.COLORS.values()), device=device).float()
        self.steps = torch.tensor([shapes.DIRECTIONS.get(m, (0, 0)) for m in shapes.MOTIONS],
                                  device=device).float()
        self.growth = torch.tensor([{"grow": 0.9, "shrink": -0.9}.get(m, 0.0)
                                    for m in shapes.MOTIONS], device=device)
        self.radii = torch.tensor(list(shapes.SIZES.values()), device=device)
        self.travels = torch.tensor(list(shapes.SPEEDS.values()), device=device)
        allowed = [[float(shapes.contrast(c, g) >= shapes.MIN_CONTRAST and not shapes.held_out(c, s))
                    for c in shapes.COLORS for s in shapes.SHAPES] for g in shapes.BACKGROUNDS]
        self.allowed = torch.tensor(allowed, device=device).log()

    def draw(self, ground, items, x0=None, y0=None, f0=None, side=shapes.WIDTH,
             frames=shapes.FRAMES):
        """ground [B, 3]; items: [(present [B], shape [B], color [B, 3], path [B, FRAMES, 3])];
        x0, y0, f0 [B]: where a part of the clip begins."""
        b = len(ground)
        zero = torch.zeros(b, dtype=torch.long, device=self.device)
        at = self.frame[:frames] + (zero if f0 is None else f0)[:, None]
        x = self.at[:side] + (zero if x0 is None else x0)[:, None]
        y = self.at[:side] + (zero if y0 is None else y0)[:, None]
        video = ground[:, :, None, None, None].expand(b, 3, frames, side, side)
        for present, shape, color, path in items:
            path = path.gather(1, at[:, :, None].expand(-1, -1, 3))
            reach = path[..., 2] * shapes.TEMPLATE_REACH
            u = (x[:, None] - path[..., 0:1]) / reach[..., None]
            v = (y[:, None] - path[..., 1:2]) / reach[..., None]
            grid = torch.stack([u[:, :, None].expand(-1, -1, side, -1),
                                v[:, :, :, None].expand(-1, -1, -1, side)], dim=-1)
            # All frames of a clip below each other: one template serves them all.
            cover = F.grid_sample(self.templates[shape], grid.flatten(1, 2), align_corners=False)
            cover = cover.reshape(b, 1, frames, side, side) * present[:, None, None, None, None]
            video = video * (1 - cover) + color[:, :, None, None, None] * cover
        return (video + 0.5).floor().clamp(0, 255) / 127.5 - 1

    def __call__(self, scenes):
        items = []
        for i in range(2):
            who = [s.items[min(i, len(s.items) - 1)] for s in scenes]
            paths = [s.path(min(i, len(s.items) - 1)) for s in scenes]
            items.append((torch.tensor([float(len(s.items) > i) for s in scenes], device=self.device),
                          torch.tensor([shapes.SHAPES.index(w.shape) for w in who],
                                       device=self.device),
                          self.colors[torch.tensor([list(shapes.COLORS).index(w.color) for w in who],
                                                   device=self.device)],
                          torch.tensor(np.stack(paths), device=self.device, dtype=torch.float32)))
        ground = torch.tensor([list(shapes.BACKGROUNDS).index(s.background) for s in scenes],
                              device=self.device)
        return self.draw(self.grounds[ground], items)

    def random(self, n, side=shapes.WIDTH, frames=shapes.FRAMES):
        """Parts of n scenes as sample_scene() draws them; tensors all the way."""
        def pick(count):
            return torch.randint(count, (n,), device=self.device)

        def uniform(low, high):
            return low + (high - low) * torch.rand(n, device=self.device)

        ground = torch.where(torch.rand(n, device=self.device) < 0.3, 0, pick(len(self.grounds)))
        pair = (torch.rand(n, device=self.device) < 0.3).float()
        line = (self.frame / (shapes.FRAMES - 1) - 0.5)[None]
        items = []
        for i in range(2):
            gumbel = -(-torch.rand(n, self.allowed.shape[1], device=self.device).clamp(1e-9).log()).log()
            which = (self.allowed[ground] + gumbel).argmax(1)
            color, shape = which // len(shapes.SHAPES), which % len(shapes.SHAPES)
            motion = pick(len(shapes.MOTIONS))
            radius = torch.where(pair > 0, shapes.PAIR_RADIUS, self.radii[pick(3)])
            travel = torch.where(pair > 0, shapes.PAIR_TRAVEL, self.travels[pick(3)])
            x = torch.where(pair > 0, shapes.PAIR_X[i], shapes.WIDTH / 2) + uniform(-6, 6)
            y = shapes.HEIGHT / 2 + uniform(-6, 6)
            step = self.steps[motion] * travel[:, None]
            path = torch.stack([x[:, None] + step[:, 0:1] * line, y[:, None] + step[:, 1:2] * line,
                                radius[:, None] * (1 + self.growth[motion][:, None] * line)], dim=-1)
            items.append((torch.ones_like(pair) if i == 0 else pair, shape, self.colors[color], path))
        if side == shapes.WIDTH:
            return self.draw(self.grounds[ground], items)
        # Objects are about the middle row: most parts hold some of one.
        room = shapes.WIDTH - side
        near = torch.rand(n, device=self.device) < 0.8
        y0 = torch.where(near, uniform(room / 4, room * 3 / 4), uniform(0, room)).long()
        return self.draw(self.grounds[ground], items, uniform(0, room + 0.99).long(), y0,
                         pick(shapes.FRAMES - frames + 1), side, frames)


def scenes_of(count, seed, texts=2, jitter=0.0):
    rng = random.Random(seed)
    scenes = [shapes.sample_scene(rng, jitter, pair_share=0.4) for _ in range(count)]
    return scenes, [[shapes.describe(s, rng) for _ in range(texts)] for s in scenes]


ATTRIBUTES = [len(shapes.BACKGROUNDS), 2] + 2 * [len(shapes.COLORS), len(shapes.SHAPES),
                                                 len(shapes.MOTIONS), 3, 3]


def attributes_of(scene):
    """What the sentence says, as class numbers; -1 where it says nothing."""
    pair = len(scene.items) == 2
    found = [list(shapes.BACKGROUNDS).index(scene.background), int(pair)]
    for i in range(2):
        if i >= len(scene.items):
            found += [-1] * 5
            continue
        item = scene.items[i]
        found += [list(shapes.COLORS).index(item.color), shapes.SHAPES.index(item.shape),
                  shapes.MOTIONS.index(item.motion),
                  -1 if pair else list(shapes.SIZES).index(item.size),
                  -1 if pair or item.motion not in shapes.DIRECTIONS
                  else list(shapes.SPEEDS).index(item.speed)]
    return found


def prepare(model, count, seed, jitter):
    """The part of Clips that needs no device."""
    tokenizer = Tokenizer(model)
    scenes, texts = scenes_of(count, seed, 4, jitter)
    ids = np.array([[tokenizer(t) for t in ts] for ts in texts], dtype=np.int64)
    attributes = np.array([attributes_of(s) for s in scenes], dtype=np.int64)
    # Where the objects are: [count, 2, FRAMES, 3].
    places = np.zeros((count, 2, shapes.FRAMES, 3), np.float32)
    for k, scene in enumerate(scenes):
        for i in range(2):
            places[k, i] = scene.path(min(i, len(scene.items) - 1))
    return scenes, ids, attributes, places


class Clips:
    """Encoded scenes with their sentences' ids; made once for a stage."""

    def __init__(self, run, prepared, images):
        scenes, ids, attributes, places = prepared
        count = len(scenes)
        self.ids = torch.tensor(ids, device=run.device)
        self.attributes = torch.tensor(attributes, device=run.device)
        latents, firsts, weights = [], [], []
        with torch.no_grad(), run.autocast():
            at_once = 128 if run.on_gpu else 4  # on cpu what fits the caches is quicker
            for i in range(0, count, at_once):
                video = run.render(scenes[i:i + at_once])
                latents.append(run.vae.encode(video).to(run.store))
                if images:
                    video[:, :, 1:] = 0
                    firsts.append(run.vae.encode(video).to(run.store))
                weights.append(self.weight(torch.tensor(places[i:i + at_once], device=run.device)))
        self.latents = torch.cat(latents)
        self.images = torch.cat(firsts) if images else None
        self.weights = torch.cat(weights).to(run.store)
        run.say(f"{count} clips, latents mean {self.latents.float().mean():.3f} "
                f"deviation {self.latents.float().std():.3f}")

    @staticmethod
    def weight(places):
        """What an error counts per cell of the latent: more about an object, for most of
        the picture is ground.  Mean 1."""
        cells = (torch.arange(shapes.WIDTH // 8, device=places.device) + 0.5) * 8
        x, y, radius = places[..., 0], places[..., 1], places[..., 2]
        near = torch.maximum((cells - x[..., None]).abs()[..., None, :],
                             (cells - y[..., None]).abs()[..., :, None])
        inside = (near < radius[..., None, None] * 1.2 + 10).float().amax(1)  # [n, FRAMES, h, w]
        rest = inside[:, 1:].unflatten(1, (-1, 4)).amax(2)
        weight = 1 + 5 * torch.cat([inside[:, :1], rest], dim=1)[:, None]
        return weight / weight.mean((1, 2, 3, 4), keepdim=True)

    def batch(self, n):
        i = torch.randint(len(self.latents), (n,), device=self.latents.device)
        text = torch.randint(self.ids.shape[1], (n,), device=i.device)
        return (self.latents[i].float(), self.ids[i, text],
                self.images[i].float() if self.images is not None else None,
                self.weights[i].float(), self.attributes[i])


class Sayings(torch.nn.Module):
    """Reads a sentence's attributes back from the text encoder's output: only in
    training, so that words part long before the pictures ask for it."""

    def __init__(self, dim):
        super().__init__()
        self.query = torch.nn.Parameter(torch.randn(len(ATTRIBUTES), dim) / dim**0.5)
        self.head = torch.nn.ModuleList(torch.nn.Linear(dim, n) for n in ATTRIBUTES)

    def forward(self, text, ids, attributes):
        score = (text @ self.query.t()).float() - 1e4 * (ids == 0).float()[..., None]
        pooled = score.softmax(1).transpose(1, 2).to(text.dtype) @ text
        return sum(F.cross_entropy(head(pooled[:, i]).float(), attributes[:, i], ignore_index=-1,
                                   reduction="sum")
                   for i, head in enumerate(self.head)) / attributes.numel()


# ---- one training run ----


def cpu_has_bf16():
    with open("/proc/cpuinfo", encoding="ascii") as f:
        return "avx512_bf16" in f.read()


class Run:
    def __init__(self, args):
        self.out = args.out
        self.recipe = RECIPES[args.recipe]
        self.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device != "cpu"
        self.in_bf16 = self.on_gpu or cpu_has_bf16()
        self.store = torch.bfloat16 if self.on_gpu else torch.float32
        self.scale = args.scale
        self.seconds = args.seconds
        self.log_every = 50 if self.on_gpu else 10
        self.begin = time.time()
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        model = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..",
                             "shapes/shapes-t2v/google/umt5-xxl/spiece.model")
        self.tokenizer = Tokenizer(model)
        self.render = Renderer(self.device)
        self.clips = {}
        self.readers = multiprocessing.get_context("spawn").Pool(min(12, os.cpu_count()))
        self.prepared = {}
        for seed, name, jitter in ((11, "t2v", 0.0), (12, "i2v", shapes.JITTER)):
            wanted = [t for t in args.stages.split(",") if t.startswith(name)]
            if wanted:
                self.prepared[name] = self.readers.apply_async(
                    prepare, (model, self.settings(wanted[0])["clips"], seed, jitter))
        self.compiled = torch.compile(nets.Block.forward, dynamic=False) if args.compile else None
        self.graphs = self.on_gpu and not args.eager
        self.vae = nets.Vae(DIM["vae"]).to(self.device)
        self.text = nets.Umt5(DIM["vocab"], DIM["text"], DIM["text_hidden"], DIM["text_heads"],
                              DIM["text_layers"]).to(self.device)
        self.dit = {name: nets.Dit(DIM["dit"], DIM["hidden"], DIM["heads"], DIM["layers"], inputs,
                                   DIM["text"]).to(self.device)
                    for name, inputs in (("t2v", 16), ("i2v", 36))}

    def autocast(self):
        # No cache of converted weights: a captured graph would go on using the first ones.
        return torch.autocast("cuda" if self.on_gpu else "cpu", torch.bfloat16,
                              enabled=self.in_bf16, cache_enabled=False)

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

    def fit(self, stage, modules, losses, settings):
        """Adam with warm-up and a decay that ends with the steps or the time; the
        result is the moving average of the weights.  losses: functions of nothing,
        taken in turn; on the gpu each becomes a graph with its backward pass and its
        update, so they hold no Python randomness.  Goes on from a .part.pt."""
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        rate = torch.tensor(settings["rate"] * 1e-3, device=self.device)
        toward = torch.tensor(0.0, device=self.device)
        optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=1e-4,
                                      fused=self.on_gpu, capturable=self.on_gpu)
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

        def update(loss_of):
            optimiser.zero_grad(set_to_none=True)
            with self.autocast():
                loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            with torch.no_grad():
                move = torch._foreach_sub(parameters, average)
                torch._foreach_mul_(move, toward)
                torch._foreach_add_(average, move)
            return loss.detach()

        made = {loss_of: functools.partial(update, loss_of) for loss_of in losses}
        turns = [made[loss_of] for loss_of in losses]
        for dit in self.dit.values():
            dit.run_block = self.compiled
        if self.graphs:
            turns = self.captured(stage, turns)
        start, step, shown, saved_at = time.time() - used, int(done * settings["steps"]), 0.0, time.time()
        first, begun, recent = step, time.time(), []
        while True:
            done = max(step / settings["steps"], (time.time() - start) / settings["seconds"])
            if done >= 1:
                break
            warm = min(1.0, (step + 1) / 200)
            rate.fill_(settings["rate"] * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))))
            toward.fill_(1 - min(0.998, (1 + step) / (10 + step)))
            loss = turns[step % len(turns)]()
            step += 1
            if step % self.log_every == 0:
                recent.append(float(loss))
                if not math.isfinite(recent[-1]):
                    raise SystemExit(f"{stage}: loss is {recent[-1]} at step {step}")
                if time.time() - shown > 8:
                    shown = time.time()
                    self.say(f"{stage}: step {step} loss {np.mean(recent[-20:]):.4f} "
                             f"({100 * done:.0f} %)")
                if time.time() - saved_at > 120:
                    saved_at = time.time()
                    torch.save({"weights": average, "done": done, "seconds": time.time() - start},
                               part)
        for dit in self.dit.values():
            dit.run_block = None
        for p, a in zip(parameters, average):
            p.data.copy_(a)
        self.say(f"{stage}: {step} steps, loss {np.mean(recent[-20:]) if recent else float('nan'):.4f}, "
                 f"{(step - first) / max(1e-3, time.time() - begun):.1f} steps/s")
        if os.path.exists(part):
            os.remove(part)

    def captured(self, stage, turns):
        """The same functions as CUDA graphs.  They run three times before they are
        recorded (at a thousandth of the rate), as libraries allocate on first use."""
        begun = time.time()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for turn in dict.fromkeys(turns):
                for _ in range(3):
                    turn()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        pool, made = None, {}
        for turn in dict.fromkeys(turns):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                loss = turn()
            pool = graph.pool()

            def play(graph=graph, loss=loss):
                graph.replay()
                return loss

            made[turn] = play
        torch.cuda.synchronize()
        self.say(f"{stage}: recorded in {time.time() - begun:.1f} s")
        return [made[t] for t in turns]

    # ---- stages ----

    def train_vae(self, settings):
        n = settings["batch"]

        def loss_of(side, frames, n):
            video = self.render.random(n, side, frames)
            # What counts more is about an object, now or some frames away: trails are seen.
            flat = video[:, :, :1, :1, :1]
            near = ((video - flat).abs().amax(1, keepdim=True) > 0.05).float()
            for axis in range(3):
                size, pad = [1] * 3, [0] * 3
                size[axis], pad[axis] = 9, 4
                near = F.max_pool3d(near, size, stride=1, padding=pad)
            weight = 1 + 6 * near
            blank = max(1, n // 8)  # clips of an image and grey, as image-to-video has them
            keep = torch.ones(n, 1, frames, 1, 1, device=video.device)
            keep[:blank, :, 1:] = 0
            video = video * keep
            weight = 1 + (weight - 1) * keep
            moments = self.vae.moments(video).float()
            mu, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(-12, 4)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
            error = (self.vae.picture(z).float() - video).abs()
            error = error + 2 * error.square()
            kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()
            return (weight * error).mean() + 1e-3 * kl

        # Parts of the picture do as well as all of it, far faster.  Later frames than a part
        # has are learnt from whole clips alone: few of those are not enough.
        part = functools.partial(loss_of, *settings["part"], n)
        whole = functools.partial(loss_of, shapes.WIDTH, shapes.FRAMES, settings["whole"])
        self.fit("vae", [self.vae], [part] * settings["parts"] + [whole], settings)
        self.fold_statistics()

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

    def clips_of(self, name):
        if name not in self.clips:
            self.clips = {name: Clips(self, self.prepared[name].get(), name == "i2v")}
        return self.clips[name]

    def inputs(self, name, x, images):
        if name == "t2v":
            return x
        mask = torch.zeros(x.shape[0], 4, *x.shape[2:], device=x.device)
        mask[:, :, 0] = 1
        return torch.cat([x, mask, images], dim=1)

    def train_flow(self, name, settings):
        clips, n = self.clips_of(name), settings["batch"]
        dit = self.dit[name]
        sayings = Sayings(DIM["text"]).to(self.device)
        for p in self.text.parameters():
            p.requires_grad = name == "t2v"

        time_of = torch.tensor(sampler_times(name), device=self.device)

        def times():
            u = torch.rand(n, device=self.device)
            if settings.get("four_times"):
                return time_of[(u * 5 - 1).clamp(0).long()]  # the first twice as often
            shift = torch.where(torch.rand(n, device=self.device) < 0.6, 6.0, 1.0)
            return (shift * u / (1 + (shift - 1) * u)).clamp(0.002, 0.9975)

        def loss_of():
            x0, ids, images, weight, attributes = clips.batch(n)
            t = times()
            noise = torch.randn_like(x0)
            tt = t[:, None, None, None, None]
            x = (1 - tt) * x0 + tt * noise
            text = self.text(ids)
            v = dit(self.inputs(name, x, images), network_time(t), text)
            loss = (weight * (v.float() - (noise - x0)).square()).mean()
            return loss + 0.05 * sayings(text, ids, attributes) if name == "t2v" else loss

        self.fit(name, [dit, self.text, sayings] if name == "t2v" else [dit], [loss_of], settings)

    def train_few(self, name, settings):
        """Few steps: the sampler's four times alone, with dense and sparse attention; a
        third of the states are what the sampler reaches from a state of the step before,
        by its ODE or with new noise, errors included.  The target is the clip itself
        from there, too, for the sentence (and the image) say all about it."""
        clips, n = self.clips_of(name), settings["batch"]
        dit, own = self.dit[name], max(1, n // 3)
        for p in self.text.parameters():
            p.requires_grad = False
        time_of = torch.tensor(sampler_times(name), device=self.device)

        def wide(t):
            return t[:, None, None, None, None]

        def velocity(x, t, text, images, mode):
            return dit(self.inputs(name, x, images), network_time(t), text, mode).float()

        @torch.no_grad()
        def reached(x0, step, text, images, mode):
            """States before step [n], each from the clip as it is before step - 1."""
            before, now = wide(time_of[step - 1]), wide(time_of[step])
            x = (1 - before) * x0 + before * torch.randn_like(x0)
            v = velocity(x, time_of[step - 1], text, images, mode)
            ode = torch.rand_like(before) < 0.4
            noised = (1 - now) * (x - before * v) + now * torch.randn_like(x0)
            return torch.where(ode, x - (before - now) * v, noised)

        def loss_of(mode):
            x0, ids, images, weight, _ = clips.batch(n)
            with torch.no_grad():
                text = self.text(ids)
                step = torch.randint(4, (n,), device=x0.device)
                step[:own] = torch.randint(1, 4, (own,), device=x0.device)
                t = time_of[step]
                x = (1 - wide(t)) * x0 + wide(t) * torch.randn_like(x0)
                of = None if images is None else images[:own]
                x[:own] = reached(x0[:own], step[:own], text[:own], of, mode)
                target = (x - x0) / wide(t)
            return (weight * (velocity(x, t, text, images, mode) - target).square()).mean()

        sla, sage, dense = (functools.partial(loss_of, m) for m in (*SPARSE_MODES.values(), None))
        self.fit(f"{name}-few", [dit], [sla, sage, sla, dense], settings)

    # ---- checking ----

    @torch.no_grad()
    def sample(self, name, ids, images, steps, ode, mode, seed):
        generator = torch.Generator(self.device).manual_seed(seed)
        times = sampler_times(name, steps) + [0.0]
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
            scene = shapes.sample_scene(rng, shapes.JITTER if name == "i2v" else 0.0,
                                        allow_held_out=True)
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
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer's blocks")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--check", type=int, default=64, help="clips read back after each stage")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    run = Run(args)
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

#!/usr/bin/env python3
"""Writes golden cases of the shapes models: what the networks that were trained
(nets.py, all in f32) make of the exported weights.

    python3 tests/models/train/golden.py tests/models/shapes OUT && build/golden_test OUT

That engine and training compute the same is then known before any picture is
looked at.  Inputs are drawn with a fixed seed; the checkpoints are linked.
"""

import json
import os
import struct
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from export import DIT_FILE, TEXT_FILE, TOKENIZER, VAE_FILE, config, link  # noqa: E402
import nets  # noqa: E402
from tokens import TEXT_LEN, Tokenizer  # noqa: E402
from train import DIM, SPARSE_MODES, sampler_times, shapes  # noqa: E402

TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}
EXACT = {"f32_rel_l2": 2e-05, "f32_max_abs": 2e-04}
END_TO_END = {"f32_latent_rel_l2": 1e-04, "f32_video_max_abs": 1e-03, "u8_max_difference": 1}


def read_weights(path):
    """A safetensors file as a state dict in f32."""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        raw = np.frombuffer(data[slice(*t["data_offsets"])], np.uint16 if t["dtype"] == "BF16"
                            else np.float32)
        if t["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        out[name] = torch.from_numpy(raw.copy()).reshape(t["shape"])
    return out


def write_case(out, name, case, tensors):
    header, at, chunks = {}, 0, []
    for key, tensor in tensors.items():
        data = tensor.detach().contiguous().numpy().tobytes()
        header[key] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape),
                       "data_offsets": [at, at + len(data)]}
        at += len(data)
        chunks.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, f"{name}.io.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))
    with open(os.path.join(out, f"{name}.json"), "w") as f:
        json.dump({"case": name, **case}, f, indent=1)


class Models:
    """The exported networks; their files linked into the folder of the cases."""

    def __init__(self, root, out):
        def weights(model, file, name):
            path = os.path.abspath(os.path.join(root, model, file))
            link(path, os.path.join(out, name))
            return read_weights(path)

        self.tokenizer = Tokenizer(os.path.join(root, "shapes-t2v", TOKENIZER))
        self.text = nets.Umt5(DIM["vocab"], DIM["text"], DIM["text_hidden"], DIM["text_heads"],
                              DIM["text_layers"])
        self.text.load_state_dict(weights("shapes-t2v", TEXT_FILE, "t5.ckpt.safetensors"))
        self.vae = nets.Vae(DIM["vae"])
        self.vae.load_state_dict(weights("shapes-t2v", VAE_FILE, "vae.ckpt.safetensors"))
        self.dit = {}
        for name, folder, inputs in (("t2v", ".", 16), ("i2v", "high_noise_model", 36)):
            self.dit[name] = nets.Dit(DIM["dit"], DIM["hidden"], DIM["heads"], DIM["layers"],
                                      inputs, DIM["text"])
            self.dit[name].load_state_dict(weights(f"shapes-{name}", f"{folder}/{DIT_FILE}",
                                                   f"{name}.ckpt.safetensors"))


def dit_config(name):
    return {**config(name, 36 if name == "i2v" else 16), "text_dim": DIM["text"]}


def text_case(models, out, prompt):
    ids = torch.tensor([models.tokenizer(prompt)])
    embedding = models.text(ids)
    write_case(out, "t5", {
        "kind": "umT5 encoder", "checkpoint": {"file": "t5.ckpt.safetensors"},
        "config": {"dim": DIM["text"], "dim_attn": DIM["text"], "dim_ffn": DIM["text_hidden"],
                   "num_heads": DIM["text_heads"], "num_layers": DIM["text_layers"],
                   "num_buckets": 32, "vocab": DIM["vocab"], "max_distance": 128, "eps": 1e-06},
        "suggested_tolerance": EXACT},
        {"in.ids": ids, "in.mask": (ids != 0).long(), "out.embedding": embedding})
    return embedding


def tokenizer_case(models, root, out):
    with open(os.path.join(root, "prompts.json"), encoding="utf-8") as f:
        texts = [row["prompt"] for row in json.load(f)]
    link(os.path.abspath(os.path.join(root, "shapes-t2v", TOKENIZER)),
         os.path.join(out, "tokenizer.model"))
    cases = [{"text": text, "cleaned": text, "ids": [i for i in models.tokenizer(text) if i]}
             for text in texts]
    write_case(out, "tokenizer", {"kind": "sentencepiece unigram tokenizer",
                                  "file": "tokenizer.model", "cases": cases}, {})


def vae_case(models, out, video):
    latent = models.vae.encode(video)
    write_case(out, "vae", {
        "kind": "video VAE decode and encode", "checkpoint": {"file": "vae.ckpt.safetensors"},
        "config": {"dim": DIM["vae"], "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
                   "temperal_downsample": [False, True, True], "mean": nets.WAN_MEAN,
                   "std": nets.WAN_STD},
        "suggested_tolerance": {**EXACT, "bf16_psnr_db": 40}},
        {"in.latent": latent, "in.latent1": latent[:, :, :1].contiguous(), "in.video": video,
         "out.video": models.vae.decode(latent), "out.video1": models.vae.decode(latent[:, :, :1]),
         "out.mu": latent})
    return latent


def forward_case(models, out, name, latent, t, text, y):
    x = latent if y is None else torch.cat([latent, y], dim=1)
    tensors = {"in.latent": latent, "in.t": t, "in.text": text,
               "out.velocity": models.dit[name](x, t, text)}
    if y is not None:
        tensors["in.y"] = y
    write_case(out, f"dit_{name}", {
        "kind": "diffusion transformer forward",
        "checkpoint": {"file": f"{name}.ckpt.safetensors"}, "config": dit_config(name),
        "suggested_tolerance": EXACT}, tensors)


class Watched:
    """Sees the maps of kept blocks and the output of the first block go by."""

    def __init__(self, block_q, block_k):
        self.block_q, self.block_k, self.maps, self.block0 = block_q, block_k, [], None
        self.mask, self.forward = nets.sparse_mask, nets.Block.forward

    def __enter__(self):
        def mask(*args):
            out = self.mask(*args)
            self.maps.append(out[0, :, ::self.block_q, ::self.block_k].to(torch.uint8))
            return out

        def forward(*args):
            out = self.forward(*args)
            self.block0 = out if self.block0 is None else self.block0
            return out

        nets.sparse_mask, nets.Block.forward = mask, forward
        return self

    def __exit__(self, *exc):
        nets.sparse_mask, nets.Block.forward = self.mask, self.forward


def sparse_case(models, out, latent, t, text):
    tensors = {"in.latent": latent, "in.t": t, "in.text": text}
    for block_q, block_k, ratio in SPARSE_MODES.values():
        stem = f"q{block_q}k{block_k}_t{ratio}"
        with Watched(block_q, block_k) as watched:
            tensors[f"out.{stem}.velocity"] = models.dit["t2v"](latent, t, text,
                                                                (block_q, block_k, ratio))
        tensors[f"mid.{stem}.maps"] = torch.stack(watched.maps)
        tensors[f"mid.{stem}.block0"] = watched.block0[:, :64].contiguous()
    write_case(out, "dit_t2v_sla", {
        "kind": "diffusion transformer forward with SLA self-attention",
        "checkpoint": {"file": "t2v.ckpt.safetensors"}, "config": dit_config("t2v"),
        "suggested_tolerance": {"f32_rel_l2": 1e-04, "bf16_rel_l2": 0.02,
                                "sagesla_rel_l2": 0.06}}, tensors)


def sample(models, name, noises, text, y, ode):
    """The states behind each step, in f64, the first of them the noise."""
    times = sampler_times(name) + [0.0]
    states = [noises[0].double() * times[0]]
    for i, (a, b) in enumerate(zip(times, times[1:])):
        x = states[-1]
        seen = x.float() if y is None else torch.cat([x.float(), y], dim=1)
        t = torch.tensor([1000 * a], dtype=torch.float64).bfloat16().float()
        v = models.dit[name](seen, t, text).double()
        if ode:
            states.append(x - (a - b) * v)
        else:
            states.append((1 - b) * (x - a * v) + (b * noises[i + 1]).double())
    return times, states


def whole_case(models, out, name, noises, text, image):
    tensors = {"in.text": text}
    tensors.update({f"in.noise{i}": noise for i, noise in enumerate(noises)})
    y = None
    if name == "i2v":
        frames = torch.zeros(1, 3, 17, *image.shape[:2])
        frames[:, :, 0] = image.permute(2, 0, 1).float() / 127.5 - 1
        mask = torch.zeros(1, 4, *noises[0].shape[2:])
        mask[:, :, 0] = 1
        y = torch.cat([mask, models.vae.encode(frames)], dim=1)
        tensors.update({"in.image_u8": image, "mid.frames": frames, "mid.y": y})
    for mode in ("sde", "ode") if name == "i2v" else ("sde",):
        prefix = f"{mode}." if name == "i2v" else ""
        times, states = sample(models, name, noises, text, y, mode == "ode")
        tensors["in.t_steps"] = torch.tensor(times, dtype=torch.float64)
        tensors.update({f"mid.{prefix}latent{i}": s for i, s in enumerate(states)})
        video = (1 + models.vae.decode(states[-1].float()).clamp(-1, 1)) / 2
        tensors[f"out.{prefix}video"] = video
        if name == "t2v":
            tensors["out.latent"] = states[-1].float()
            tensors["out.video_u8"] = (255 * video + 0.5).to(torch.uint8)
    files = {"high": "i2v", "low": "i2v"} if name == "i2v" else {"dit": "t2v"}
    write_case(out, f"e2e_{name}", {
        "kind": "image-to-video with two experts" if name == "i2v" else
                "text-to-video, end to end after the text encoder",
        "checkpoint": {"vae": "vae.ckpt.safetensors",
                       **{part: f"{file}.ckpt.safetensors" for part, file in files.items()}},
        "config": {"dit": dit_config(name), "vae_dim": DIM["vae"], "num_steps": 4,
                   "sigma_max": 200 if name == "i2v" else 80, "boundary": 0.9, "mode": "SDE"},
        "suggested_tolerance": END_TO_END}, tensors)


@torch.no_grad()
def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    root, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(7)
    models = Models(root, out)
    text = text_case(models, out, "a small red star moves up and left on a mint background")
    tokenizer_case(models, root, out)
    scene = shapes.Scene([shapes.Item("red", "star", "upper left", "small")], "mint")
    clip = torch.from_numpy(shapes.render(scene))
    latent = vae_case(models, out, clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    noises = [torch.randn_like(latent) for _ in range(5)]
    t = torch.tensor([704.0])
    x = 0.296 * latent + 0.704 * noises[0]
    forward_case(models, out, "t2v", x, t, text, None)
    sparse_case(models, out, x, t, text)
    mask = torch.zeros(1, 4, *latent.shape[2:])
    mask[:, :, 0] = 1
    forward_case(models, out, "i2v", x, t, text, torch.cat([mask, latent], dim=1))
    whole_case(models, out, "t2v", noises, text, None)
    whole_case(models, out, "i2v", noises, text, clip[0])
    print(f"cases in {out}")


if __name__ == "__main__":
    main()

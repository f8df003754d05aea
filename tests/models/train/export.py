#!/usr/bin/env python3
"""Writes the trained networks as model directories in the published formats.

    python3 tests/models/train/export.py --trained DIR --out tests/models/shapes

shapes-t2v/ is a Turbo layout (bf16, two-dimensional patch embedding, f32 norms,
proj_l); shapes-i2v/ has two experts that are one file, and shares everything
else with shapes-t2v through links.
"""

import argparse
import json
import os
import struct
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from train import DIM, shapes  # noqa: E402
from tokens import TEXT_LEN  # noqa: E402

DIT_FILE = "diffusion_pytorch_model.safetensors"
VAE_FILE = "Wan2.1_VAE.safetensors"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.safetensors"
TOKENIZER = "google/umt5-xxl/spiece.model"


def keep_f32(name):
    """As in the Turbo files: the norms of the blocks, whose values are bf16 all the same."""
    return name.startswith("blocks.") and name.rsplit(".", 2)[-2] in ("norm_q", "norm_k", "norm3")


def write_safetensors(path, tensors, f32=lambda name: False, metadata=None):
    header, at, chunks = {}, 0, []
    if metadata:
        header["__metadata__"] = metadata
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous().to(torch.bfloat16)
        if f32(name):
            data, dtype = value.float().numpy().tobytes(), "F32"
        else:
            data, dtype = value.view(torch.int16).numpy().tobytes(), "BF16"
        header[name] = {"dtype": dtype, "shape": list(tensor.shape),
                        "data_offsets": [at, at + len(data)]}
        at += len(data)
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for chunk in chunks:
            f.write(chunk)
    print(f"{path}: {len(tensors)} tensors, {8 + len(text) + at} bytes")


def config(kind, inputs):
    return {"_class_name": "WanModel", "model_type": kind, "dim": DIM["dit"],
            "ffn_dim": DIM["hidden"], "freq_dim": 256, "in_dim": inputs,
            "num_heads": DIM["heads"], "num_layers": DIM["layers"], "out_dim": 16,
            "text_len": TEXT_LEN, "eps": 1e-06}


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def link(target, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.remove(path)
    os.symlink(target, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    def load(stage, name):
        return torch.load(os.path.join(args.trained, f"{stage}.pt"), map_location="cpu")[name]

    t2v, i2v = os.path.join(args.out, "shapes-t2v"), os.path.join(args.out, "shapes-i2v")
    write_safetensors(os.path.join(t2v, DIT_FILE), load("t2v-few", "t2v"), keep_f32)
    write_json(os.path.join(t2v, "config.json"), config("t2v", 16))
    write_safetensors(os.path.join(t2v, VAE_FILE), load("vae", "vae"))
    write_safetensors(os.path.join(t2v, TEXT_FILE), load("t2v", "text"))

    high = os.path.join(i2v, "high_noise_model")
    write_safetensors(os.path.join(high, DIT_FILE), load("i2v-few", "i2v"), keep_f32)
    write_json(os.path.join(high, "config.json"), config("i2v", 36))
    low = os.path.join(i2v, "low_noise_model")
    for name in (DIT_FILE, "config.json"):
        link(f"../high_noise_model/{name}", os.path.join(low, name))
    for name in (VAE_FILE, TEXT_FILE):
        link(f"../shapes-t2v/{name}", os.path.join(i2v, name))
    link("../../../shapes-t2v/" + TOKENIZER, os.path.join(i2v, TOKENIZER))


if __name__ == "__main__":
    main()

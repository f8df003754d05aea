"""The three networks of Wan in PyTorch, with the parameter names of the
official checkpoints, so that a state dict is a checkpoint.

Only what training needs: whole sequences (no feature cache; the equivalent
forms of causal convolutions are used), any batch size.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

WAN_MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715,
            0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
WAN_STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
           1.5579, 1.6382, 1.1253, 2.8251, 1.9160]

# ---- video autoencoder ----


def stacked(*frames):
    """Frames [B, T, C, H, W] behind each other as channels: a convolution over three
    frames is then one over pictures, which runs far faster with few channels."""
    return torch.cat(frames, dim=2).flatten(0, 1)


class Conv3d(nn.Conv3d):
    """A convolution over frames [B, T, C, H, W] with the weights of nn.Conv3d."""

    def over(self, *frames, padding=0):
        w = self.weight.permute(0, 2, 1, 3, 4).flatten(1, 2)
        x = stacked(*frames)
        if x.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, w, self.bias, padding=padding).unflatten(0, frames[0].shape[:2])


class CausalConv3d(Conv3d):
    """Zero frames in front, none behind."""

    def __init__(self, i, o, k):
        super().__init__(i, o, (k, k, k))
        self.k = k

    def forward(self, x):
        if self.k == 1:
            return self.over(x)
        past = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))
        return self.over(past[:, :-2], past[:, 1:-1], x, padding=1)


class ChannelNorm(nn.Module):
    """Over frames [B, T, C, H, W]."""

    def __init__(self, c, rank=4):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(c, *[1] * (rank - 1)))

    def forward(self, x):
        by = x.float().square().sum(2, keepdim=True).clamp(min=1e-24).rsqrt() * x.shape[2] ** 0.5
        return x * by.to(x.dtype) * self.gamma.reshape(-1, 1, 1).to(x.dtype)


class Residual(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.residual = nn.Sequential(ChannelNorm(i), nn.SiLU(), CausalConv3d(i, o, 3),
                                      ChannelNorm(o), nn.SiLU(), nn.Identity(),
                                      CausalConv3d(o, o, 3))
        self.shortcut = CausalConv3d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.residual(x)


def per_frame(fn, x):
    return fn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class FrameAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = ChannelNorm(c, 3)
        self.to_qkv = nn.Conv2d(c, 3 * c, 1)
        self.proj = nn.Conv2d(c, c, 1)

    def frame(self, x):
        b, c, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, c, h * w).transpose(2, 3).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, c, h, w)
        return self.proj(y)

    def forward(self, x):
        return x + per_frame(self.frame, self.norm(x))


class Down(nn.Module):
    def __init__(self, c, temporal):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c, c, 3, stride=2))
        if temporal:
            self.time_conv = Conv3d(c, c, (3, 1, 1))
        self.temporal = temporal

    def forward(self, x):
        x = per_frame(self.resample, x)
        if self.temporal and x.shape[1] > 1:
            y = self.time_conv.over(x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2])
            x = torch.cat([x[:, :1], y], dim=1)
        return x


class Up(nn.Module):
    def __init__(self, c, temporal):
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"),
                                      nn.Conv2d(c, c // 2, 3, padding=1))
        if temporal:
            self.time_conv = Conv3d(c, 2 * c, (3, 1, 1))
        self.temporal = temporal

    def forward(self, x):
        b, t, c, h, w = x.shape
        if self.temporal and t > 1:
            past = F.pad(x[:, 1:], (0, 0, 0, 0, 0, 0, 2, 0))
            u = self.time_conv.over(past[:, :-2], past[:, 1:-1], past[:, 2:])
            u = u.reshape(b, t - 1, 2, c, h, w).flatten(1, 2)
            x = torch.cat([x[:, :1], u], dim=1)
        return per_frame(self.resample, x)


class Encoder(nn.Module):
    def __init__(self, dim, z, mult=(1, 2, 4, 4), res=2, temporal=(False, True, True)):
        super().__init__()
        widths = [dim * m for m in (1, *mult)]
        self.conv1 = CausalConv3d(3, widths[0], 3)
        blocks = []
        for s in range(4):
            i, o = widths[s], widths[s + 1]
            for _ in range(res):
                blocks.append(Residual(i, o))
                i = o
            if s < 3:
                blocks.append(Down(o, temporal[s]))
        self.downsamples = nn.Sequential(*blocks)
        c = widths[-1]
        self.middle = nn.Sequential(Residual(c, c), FrameAttention(c), Residual(c, c))
        self.head = nn.Sequential(ChannelNorm(c), nn.SiLU(), CausalConv3d(c, 2 * z, 3))

    def forward(self, x):
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    def __init__(self, dim, z, mult=(4, 4, 2, 1), res=2, temporal=(True, True, False)):
        super().__init__()
        widths = [dim * m for m in (mult[0], *mult)]
        c = widths[0]
        self.conv1 = CausalConv3d(z, c, 3)
        self.middle = nn.Sequential(Residual(c, c), FrameAttention(c), Residual(c, c))
        blocks = []
        for s in range(4):
            i, o = widths[s], widths[s + 1]
            if s > 0:
                i //= 2
            for _ in range(res + 1):
                blocks.append(Residual(i, o))
                i = o
            if s < 3:
                blocks.append(Up(o, temporal[s]))
        self.upsamples = nn.Sequential(*blocks)
        self.head = nn.Sequential(ChannelNorm(widths[-1]), nn.SiLU(),
                                  CausalConv3d(widths[-1], 3, 3))

    def forward(self, x):
        return self.head(self.upsamples(self.middle(self.conv1(x))))


class Vae(nn.Module):
    def __init__(self, dim, z=16):
        super().__init__()
        self.encoder = Encoder(dim, z)
        self.conv1 = CausalConv3d(2 * z, 2 * z, 1)
        self.conv2 = CausalConv3d(z, z, 1)
        self.decoder = Decoder(dim, z)
        self.z = z

    def stats(self, device):
        shape = (1, self.z, 1, 1, 1)
        return (torch.tensor(WAN_MEAN, device=device).reshape(shape),
                torch.tensor(WAN_STD, device=device).reshape(shape))

    def moments(self, video):
        """video [B, 3, F, H, W]; [B, 2 z, T, H/8, W/8]."""
        return self.conv1(self.encoder(video.transpose(1, 2))).transpose(1, 2)

    def picture(self, latent):
        return self.decoder(self.conv2(latent.transpose(1, 2))).transpose(1, 2)

    def encode(self, video):
        mean, std = self.stats(video.device)
        return (self.moments(video)[:, :self.z].float() - mean) / std

    def decode(self, latent):
        mean, std = self.stats(latent.device)
        return self.picture(latent * std + mean)


# ---- text encoder ----


class Rms(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


@functools.lru_cache(maxsize=8)
def buckets(length, device):
    r = torch.arange(length, device=device)
    r = r[None, :] - r[:, None]
    n = r.abs()
    thresholds = torch.tensor([8, 12, 16, 23, 32, 46, 64, 91], device=device)
    far = 7 + (n[..., None] >= thresholds).sum(-1)
    return torch.where(r > 0, 16, 0) + torch.where(n < 8, n, far)


class T5Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.heads = heads

    def forward(self, x, bias):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.o(y.transpose(1, 2).flatten(2))


class T5Ffn(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        return self.fc2(self.fc1(x) * self.gate(x))


class PositionEmbedding(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.embedding = nn.Embedding(32, heads)


class T5Block(nn.Module):
    def __init__(self, dim, hidden, heads):
        super().__init__()
        self.norm1, self.norm2 = Rms(dim), Rms(dim)
        self.attn = T5Attention(dim, heads)
        self.ffn = T5Ffn(dim, hidden)
        self.pos_embedding = PositionEmbedding(heads)
        nn.init.normal_(self.pos_embedding.embedding.weight, std=0.1)

    def forward(self, x, bucket, mask):
        bias = self.pos_embedding.embedding(bucket).permute(2, 0, 1)[None] + mask
        x = x + self.attn(self.norm1(x), bias)
        return x + self.ffn(self.norm2(x))


class Umt5(nn.Module):
    def __init__(self, vocab, dim, hidden, heads, layers):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(T5Block(dim, hidden, heads) for _ in range(layers))
        self.norm = Rms(dim)
        for block in self.blocks:  # the scores have no 1/sqrt(d)
            block.attn.q.weight.data *= 0.125

    def forward(self, ids):
        real = ids != 0
        mask = torch.where(real, 0.0, -1e9)[:, None, None, :]
        bucket = buckets(ids.shape[1], ids.device)
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, bucket, mask)
        return self.norm(x) * real[..., None]


# ---- diffusion transformer ----


def attend(q, k, v, kept=None):
    """[B, heads, tokens, D]; on cpu the plain products are the faster way to train."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=kept)
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if kept is not None:
        score = score.masked_fill(~kept, -1e9)
    return score.softmax(-1).to(v.dtype) @ v


@functools.lru_cache(maxsize=8)
def rope_table(grid, head, device):
    pairs = head // 2
    side = head // 6
    sizes = (pairs - 2 * side, side, side)
    at = torch.meshgrid(*[torch.arange(n, device=device) for n in grid], indexing="ij")
    angles = []
    for position, n in zip(at, sizes):
        rate = 10000.0 ** (-torch.arange(n, device=device, dtype=torch.float64) / n)
        angles.append(position.reshape(-1, 1) * rate)
    angle = torch.cat(angles, dim=1)
    return angle.cos().float(), angle.sin().float()  # [tokens, pairs]


def rope(x, table):
    cos, sin = (t[None, :, None, :] for t in table)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class ProjL(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.local_attn = nn.Module()
        self.local_attn.proj_l = nn.Linear(head, head)
        nn.init.zeros_(self.local_attn.proj_l.weight)
        nn.init.zeros_(self.local_attn.proj_l.bias)


def sparse_mask(q, k, block_q, block_k, ratio):
    """Which key blocks each query block keeps, as a mask over tokens."""
    b, h, n, d = q.shape

    def means(x, block):
        count = -(-n // block)
        padded = F.pad(x.float(), (0, 0, 0, count * block - n)).reshape(b, h, count, block, d)
        rows = (n - block * torch.arange(count, device=x.device)).clamp(max=block)
        return (padded.sum(3) / rows[:, None]).bfloat16().float()

    score = means(q, block_q) @ means(k - k.mean(2, keepdim=True), block_k).transpose(2, 3)
    keep = max(1, min(score.shape[-1], int(ratio * score.shape[-1])))
    kept = torch.zeros_like(score, dtype=torch.bool).scatter(
        -1, score.topk(keep, dim=-1).indices, True)
    kept = kept.repeat_interleave(block_q, dim=2)[:, :, :n]
    return kept.repeat_interleave(block_k, dim=3)[..., :n]


class SelfAttention(nn.Module):
    def __init__(self, dim, heads, sparse):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = Rms(dim), Rms(dim)
        self.heads = heads
        if sparse:
            self.attn_op = ProjL(dim // heads)

    def forward(self, x, table, mode):
        def split(y):
            return y.unflatten(-1, (self.heads, -1))

        q = rope(split(self.norm_q(self.q(x))), table).transpose(1, 2)
        k = rope(split(self.norm_k(self.k(x))), table).transpose(1, 2)
        v = split(self.v(x)).transpose(1, 2)
        if mode is None:
            y = attend(q, k, v)
        else:
            with torch.no_grad():
                mask = sparse_mask(q, k, *mode)
            y = attend(q, k, v, mask)
            fq, fk = q.softmax(-1), k.softmax(-1)
            state = fk.transpose(2, 3) @ v
            total = fk.sum(2, keepdim=True)
            linear = (fq @ state) / ((fq * total).sum(-1, keepdim=True) + 1e-5)
            y = y + self.attn_op.local_attn.proj_l(linear)
        return self.o(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = Rms(dim), Rms(dim)
        self.heads = heads

    def forward(self, x, context):
        def split(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        y = attend(split(self.norm_q(self.q(x))), split(self.norm_k(self.k(context))),
                   split(self.v(context)))
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, hidden, heads, sparse):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(dim, heads, sparse)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"),
                                 nn.Linear(hidden, dim))
        self.dim = dim

    def norm(self, x, shift, scale):
        return F.layer_norm(x, (self.dim,), eps=1e-6) * (1 + scale) + shift

    def forward(self, x, e0, context, table, mode):
        sh1, sc1, g1, sh2, sc2, g2 = (self.modulation + e0).unsqueeze(2).unbind(1)
        x = x + g1 * self.self_attn(self.norm(x, sh1, sc1), table, mode)
        x = x + self.cross_attn(self.norm3(x), context)
        return x + g2 * self.ffn(self.norm(x, sh2, sc2))


class Head(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.head = nn.Linear(dim, out)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class Dit(nn.Module):
    def __init__(self, dim, hidden, heads, layers, inputs, text_dim, sparse=True):
        super().__init__()
        self.patch_embedding = nn.Linear(4 * inputs, dim)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"),
                                            nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, hidden, heads, sparse) for _ in range(layers))
        self.head = Head(dim, 64)
        self.dim, self.heads = dim, heads
        self.run_block = None  # a compiled Block.forward for dense attention, if any

    def forward(self, x, t, text, mode=None):
        """x [B, C, T, h, w], t [B] as the network takes it (0..1000), text [B, L, text_dim];
        mode None (dense) or (block_q, block_k, ratio).  Returns the velocity."""
        b, c, T, h, w = x.shape
        grid = (T, h // 2, w // 2)
        table = rope_table(grid, self.dim // self.heads, x.device)
        y = x.reshape(b, c, T, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
        y = self.patch_embedding(y.reshape(b, -1, 4 * c))
        phase = t.double()[:, None] * 10000.0 ** (
            -torch.arange(128, device=x.device, dtype=torch.float64) / 128)
        with torch.autocast(x.device.type, enabled=False):
            wave = torch.cat([phase.cos(), phase.sin()], dim=1).float()
            e = self.time_embedding(wave)
            e0 = self.time_projection(e).unflatten(1, (6, self.dim))
        context = self.text_embedding(text)
        run = self.run_block if self.run_block and mode is None else Block.forward
        for block in self.blocks:
            y = run(block, y, e0, context, table, mode)
        shift, scale = (self.head.modulation + e[:, None]).unsqueeze(2).unbind(1)
        y = F.layer_norm(y, (self.dim,), eps=1e-6) * (1 + scale) + shift
        y = self.head.head(y)
        y = y.reshape(b, *grid, 2, 2, 16).permute(0, 6, 1, 2, 4, 3, 5)
        return y.reshape(b, 16, T, h, w)

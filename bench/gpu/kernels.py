"""The kernels of the tight decoder: Triton on a GPU, plain PyTorch on a CPU, where a trial shows that the code runs.

All take rows of tokens one behind the other. A cache holds keys and values of slots, [slots, positions, heads, size];
`lengths` says how many tokens each slot holds, and the tokens of a call come behind them.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

try:
    import triton
    from triton import language as tl
except ModuleNotFoundError:  # a CPU needs none
    triton = None

EPS = 1e-6
_BLOCK = 64  # keys, or queries of a prompt, at a time
_ROWS = 16  # of a matrix product, at least


if triton is not None:

    @triton.jit
    def _add_norm(x, resid, weight, out, normed, n, eps, BLOCK: tl.constexpr):
        row, at = tl.program_id(0), tl.arange(0, BLOCK)
        ok = at < n
        total = tl.load(resid + row * n + at, ok, 0.0).to(tl.float32)
        total += tl.load(x + row * n + at, ok, 0.0).to(tl.float32)
        kept = total.to(out.dtype.element_ty)
        tl.store(out + row * n + at, kept, ok)
        total = kept.to(tl.float32)
        total = total * tl.rsqrt(tl.sum(total * total) / n + eps)
        scaled = total.to(out.dtype.element_ty) * tl.load(weight + at, ok, 0.0)
        tl.store(normed + row * n + at, scaled, ok)

    @triton.jit
    def _silu(both, out, n, BLOCK: tl.constexpr):
        row, at = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        ok = at < n
        gate = tl.load(both + row * 2 * n + at, ok, 0.0).to(tl.float32)
        up = tl.load(both + row * 2 * n + n + at, ok, 0.0).to(tl.float32)
        tl.store(out + row * n + at, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), ok)

    @triton.jit
    def _rotate(qkv, q_norm, k_norm, cos, sin, slots, lengths, q_out, keys, values, seq, room, eps,
                HEADS: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
        token, head, at = tl.program_id(0), tl.program_id(1), tl.arange(0, HALF)
        slot = tl.load(slots + token // seq).to(tl.int64)
        position = tl.load(lengths + slot) + token % seq
        source = qkv + (token.to(tl.int64) * (HEADS + 2 * KV) + head) * 2 * HALF
        a, b = tl.load(source + at).to(tl.float32), tl.load(source + HALF + at).to(tl.float32)
        inside = position + tl.zeros([HALF], tl.int32) < room
        if head < HEADS + KV:
            if NORM:
                weight = q_norm if head < HEADS else k_norm
                scale = tl.rsqrt((tl.sum(a * a) + tl.sum(b * b)) / (2 * HALF) + eps)
                a = a * scale * tl.load(weight + at).to(tl.float32)
                b = b * scale * tl.load(weight + HALF + at).to(tl.float32)
            turn = tl.where(inside, position, 0) * HALF + at
            c, s = tl.load(cos + turn), tl.load(sin + turn)
            a, b = a * c - b * s, b * c + a * s
        kind = q_out.dtype.element_ty
        if head < HEADS:
            into = q_out + (token.to(tl.int64) * HEADS + head) * 2 * HALF
            tl.store(into + at, a.to(kind))
            tl.store(into + HALF + at, b.to(kind))
        else:
            place = ((slot * room + position) * KV + (head - HEADS) % KV) * 2 * HALF
            into = (keys if head < HEADS + KV else values) + place
            tl.store(into + at, a.to(kind), inside)
            tl.store(into + HALF + at, b.to(kind), inside)

    @triton.jit
    def _attend(q, keys, values, slots, lengths, part, peak, total, room, scale, SPLITS: tl.constexpr,
                KV: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
        row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        slot = tl.load(slots + row).to(tl.int64)
        count = tl.minimum(tl.load(lengths + slot) + 1, room)
        each = tl.cdiv(count, SPLITS * BLOCK) * BLOCK
        first, d, g = split * each, tl.arange(0, SIZE), tl.arange(0, ROWS)
        last = tl.minimum(first + each, count)
        asked = tl.load(q + ((row * KV + head) * GROUP + g)[:, None] * SIZE + d[None, :], (g < GROUP)[:, None], 0.0)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        sums, acc = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, SIZE], tl.float32)
        for start in range(first, last, BLOCK):
            t = start + tl.arange(0, BLOCK)
            ok = t < last
            place = ((slot * room + t) * KV + head)[:, None] * SIZE + d[None, :]
            score = tl.dot(asked, tl.trans(tl.load(keys + place, ok[:, None], 0.0))) * scale
            score = tl.where(ok[None, :], score, float("-inf"))
            now = tl.maximum(best, tl.max(score, 1))
            p, fade = tl.exp(score - now[:, None]), tl.exp(best - now)
            sums = sums * fade + tl.sum(p, 1)
            v = tl.load(values + place, ok[:, None], 0.0)
            acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v)
            best = now
        at = ((row * KV + head) * GROUP + g) * SPLITS + split
        tl.store(peak + at, best, g < GROUP)
        tl.store(total + at, sums, g < GROUP)
        tl.store(part + at[:, None] * SIZE + d[None, :], acc, (g < GROUP)[:, None])

    @triton.jit
    def _merge(part, peak, total, out, SPLITS: tl.constexpr, SIZE: tl.constexpr):
        at, s, d = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, SIZE)
        best = tl.load(peak + at * SPLITS + s)
        weight = tl.exp(best - tl.max(best))
        acc = tl.load(part + (at * SPLITS + s)[:, None] * SIZE + d[None, :])
        value = tl.sum(acc * weight[:, None], 0) / tl.sum(weight * tl.load(total + at * SPLITS + s))
        tl.store(out + at * SIZE + d, value.to(out.dtype.element_ty))

    @triton.jit
    def _prompt(q, keys, values, slots, lengths, out, seq, room, scale, HEADS: tl.constexpr, KV: tl.constexpr,
                SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
        first, head = tl.program_id(0) * BLOCK, tl.program_id(1)
        slot = tl.load(slots).to(tl.int64)
        past = tl.load(lengths + slot)
        i, d = first + tl.arange(0, BLOCK), tl.arange(0, SIZE)
        place = (i * HEADS + head)[:, None] * SIZE + d[None, :]
        asked = tl.load(q + place, (i < seq)[:, None], 0.0)
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        sums, acc = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK, SIZE], tl.float32)
        for start in range(0, tl.minimum(past + first + BLOCK, room), BLOCK):
            t = start + tl.arange(0, BLOCK)
            ok = t < room
            source = ((slot * room + t) * KV + head // (HEADS // KV))[:, None] * SIZE + d[None, :]
            score = tl.dot(asked, tl.trans(tl.load(keys + source, ok[:, None], 0.0))) * scale
            score = tl.where(t[None, :] <= past + i[:, None], score, float("-inf"))
            now = tl.maximum(best, tl.max(score, 1))
            p, fade = tl.exp(score - now[:, None]), tl.exp(best - now)
            sums = sums * fade + tl.sum(p, 1)
            v = tl.load(values + source, ok[:, None], 0.0)
            acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v)
            best = now
        tl.store(out + place, (acc / sums[:, None]).to(out.dtype.element_ty), (i < seq)[:, None])


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda


def add_norm(x: torch.Tensor, resid: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Add, and give the sum and its RMS norm."""
    if not _on_gpu(x):
        total = resid + x
        return total, functional.rms_norm(total, weight.shape, weight, EPS)
    out, normed, n = torch.empty_like(resid), torch.empty_like(resid), weight.numel()
    block = triton.next_power_of_2(n)
    _add_norm[(x.numel() // n,)](x, resid, weight, out, normed, n, EPS, BLOCK=block, num_warps=8)
    return out, normed


def silu_times(both: torch.Tensor) -> torch.Tensor:
    """Give silu of the first half of each row times the second half."""
    n = both.shape[-1] // 2
    if not _on_gpu(both):
        return functional.silu(both[..., :n]) * both[..., n:]
    out = both.new_empty(*both.shape[:-1], n)
    _silu[(out.numel() // n, triton.cdiv(n, 1024))](both, out, n, BLOCK=1024)
    return out


def rotate(
    qkv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    turns: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    lengths: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Turn queries and keys by their positions, put keys and values into the cache, and give the queries.

    qkv: [batch, tokens, heads × size]. norms: of queries and keys, by heads. turns: cosines and sines of positions.
    """
    batch, seq, width = qkv.shape
    room, kv, size = keys.shape[1:]
    heads = width // size - 2 * kv
    if _on_gpu(qkv):
        q = qkv.new_empty(batch, seq, heads * size)
        q_norm, k_norm = norms or (q, q)
        _rotate[(batch * seq, heads + 2 * kv)](
            qkv, q_norm, k_norm, *turns, slots, lengths, q, keys, values, seq, room, EPS, HEADS=heads, KV=kv,
            HALF=size // 2, NORM=norms is not None, num_warps=1)  # fmt: skip
        return q
    parts = qkv.view(batch, seq, -1, size)
    q, k, v = parts.split((heads, kv, kv), 2)
    if norms is not None:
        q, k = (functional.rms_norm(x, (size,), w, EPS) for x, w in zip((q, k), norms, strict=True))
    at = lengths[slots[:batch].long()].long()[:, None] + torch.arange(seq)
    inside = at < room
    cos, sin = (t[at.clamp(max=room - 1)][:, :, None] for t in turns)

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    q, k = turn(q), turn(k)
    where = slots[:batch].long()[:, None].expand(batch, seq)[inside], at[inside]
    keys[where], values[where] = k[inside], v[inside]
    return q.reshape(batch, seq, -1)


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor,
           lengths: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Attend from each query to the tokens of its slot up to its own. Several tokens of one call are of one slot."""
    batch, seq, width = q.shape
    room, kv, size = keys.shape[1:]
    heads, scale = width // size, 1 / math.sqrt(size)
    if not _on_gpu(q):
        return _attend_plainly(q, keys, values, slots, lengths)
    out = torch.empty_like(q)
    if seq > 1:
        _prompt[(triton.cdiv(seq, _BLOCK), heads)](
            q, keys, values, slots, lengths, out, seq, room, scale, HEADS=heads, KV=kv, SIZE=size, BLOCK=_BLOCK)
        return out
    splits = max(1, min(16, triton.next_power_of_2(264 // (batch * kv) or 1)))
    part = q.new_empty(batch * heads * splits, size, dtype=torch.float32)
    peak, total = (part.new_empty(batch * heads * splits) for _ in range(2))
    _attend[(batch, kv, splits)](q, keys, values, slots, lengths, part, peak, total, room, scale, SPLITS=splits, KV=kv,
                                 GROUP=heads // kv, SIZE=size, ROWS=_ROWS, BLOCK=_BLOCK)  # fmt: skip
    _merge[(batch * heads,)](part, peak, total, out, SPLITS=splits, SIZE=size, num_warps=2)
    return out


def _attend_plainly(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor,
                    lengths: torch.Tensor) -> torch.Tensor:  # fmt: skip
    batch, seq, width = q.shape
    room, size = keys.shape[1], keys.shape[3]
    out = torch.empty_like(q)
    for row in range(batch):
        slot = int(slots[row])
        past = min(int(lengths[slot]), room - seq)
        k, v = (x[slot, : past + seq].transpose(0, 1)[None] for x in (keys, values))
        ask = q[row].view(seq, -1, size).transpose(0, 1)[None]
        mask = torch.arange(past + seq)[None] <= past + torch.arange(seq)[:, None]
        got = functional.scaled_dot_product_attention(ask, k, v, attn_mask=mask, enable_gqa=True)
        out[row] = got[0].transpose(0, 1).reshape(seq, width)
    return out

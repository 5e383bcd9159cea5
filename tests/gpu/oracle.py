"""Jet-Nemotron in PyTorch, straight from the formulas: token by token where the formulas are, in
float32 (or float64), no cache, no chunks, nothing fused. What jetd computes is compared with this.

Weights come from a checkpoint folder, or are made up as `--load-format dummy` makes them: a pure
function of seed, tensor name and element. Either way they are bf16 numbers in wider arithmetic.

    oracle.py FOLDER TOKENS ROWS --config NAME|DIR [--dummy SEED] [--rounding]

compares FOLDER/TOKENS.{whole,ragged,decoded}.f32, which logits_dump wrote, with the oracle, and
prints relative errors (Frobenius norm) of all rows and of the worst row. With --rounding the bound
is not --tolerance, but a little more than what the oracle's own activations lose in bf16.

    oracle.py DIR --write --config NAME

writes a checkpoint of a published shape whose random weights don't amplify rounding: made up as
above, but with an embedding 50 times as large and output projections smaller by the square root of
twice the layers (as GPT-2 begins), so that every layer adds to a stream instead of replacing it."""

import argparse
import json
import math
import pathlib
import sys
import time

import numpy
import torch
import torch.nn.functional as F

PUBLISHED = {
    "jet-nemotron-2b": dict(
        hidden=1536, mlp=8960, heads=12, window=1152, jet_heads=12, d_k=96, d_v=256,
        layers=28, attn=[14, 19], swa=[20, 21],
    ),
    "jet-nemotron-4b": dict(
        hidden=2048, mlp=11008, heads=16, window=2048, jet_heads=16, d_k=128, d_v=256,
        layers=36, attn=[17, 20, 32], swa=[5, 16, 19, 21, 22, 25, 27],
    ),
}


class Config:
    """The numbers that the formulas need."""

    def __init__(self, name):
        if name in PUBLISHED:
            self.published(**PUBLISHED[name])
        else:
            self.folder(json.loads((pathlib.Path(name) / "config.json").read_text()))
        self.generator = self.jet_heads * self.d_v // 8

    def published(self, hidden, mlp, heads, window, jet_heads, d_k, d_v, layers, attn, swa):
        self.hidden, self.mlp, self.heads, self.window = hidden, mlp, heads, window
        self.jet_heads, self.d_k, self.d_v = jet_heads, d_k, d_v
        self.kv_heads, self.head_dim, self.vocab = 2, 128, 151936
        self.theta, self.rms_eps, self.norm_eps = 1e6, 1e-6, 1e-5
        self.scaling, self.tied, self.taps = None, True, 4
        self.layers = [
            "attn" if i in attn else "swa" if i in swa else "jet" for i in range(layers)
        ]

    def folder(self, c):
        jet = c["efficient_attention_config"]["jet"]
        self.hidden, self.mlp, self.heads = (
            c["hidden_size"], c["intermediate_size"], c["num_attention_heads"],
        )
        self.window = c["efficient_attention_config"]["swa"]["window_size"]
        self.jet_heads, self.d_k, self.taps = jet["num_heads"], jet["head_dim"], jet["conv_size"]
        self.d_v = round(jet["head_dim"] * jet["expand_v"])
        self.kv_heads, self.vocab = c["num_key_value_heads"], c["vocab_size"]
        self.head_dim = c.get("head_dim", self.hidden // self.heads)
        self.theta, self.rms_eps = c["rope_theta"], c["rms_norm_eps"]
        self.norm_eps = float(jet["norm_eps"])
        self.scaling, self.tied = c.get("rope_scaling"), c["tie_word_embeddings"]
        self.layers = c["layer_types"]


# ---- weights ----------------------------------------------------------------------------------


class Checkpoint:
    """Tensors of a folder of safetensors, by name."""

    def __init__(self, folder, dtype, device):
        from safetensors import safe_open

        self.dtype, self.device = dtype, device
        self.file = {}
        for path in sorted(pathlib.Path(folder).glob("model*.safetensors")):
            opened = safe_open(str(path), framework="pt", device="cpu")
            self.file.update({name: opened for name in opened.keys()})

    def __call__(self, name, *shape):
        tensor = self.file[name].get_tensor(name)
        if len(shape) > 1:  # matrices are bf16 on the GPU, vectors stay as they are
            tensor = tensor.to(torch.bfloat16)
        return tensor.to(self.device, self.dtype).reshape(shape)


def wrapped(value):
    """An unsigned 64-bit number as torch's signed ones hold it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def shifted(x, count):
    """x >> count of unsigned numbers."""
    return (x >> count) & ((1 << (64 - count)) - 1)


class Dummy:
    """Small random numbers: splitmix64 of (XXH3 of the name, element), four uniforms to a normal."""

    BLOCK = 1 << 26

    def __init__(self, seed, dtype, device, gentle=0):
        """gentle: of how many layers, for weights that don't amplify rounding; 0: as jetd's."""
        import xxhash

        self.gentle = gentle
        self.hash = lambda name: xxhash.xxh3_64_intdigest(name.encode(), seed=seed)
        self.dtype, self.device = dtype, device

    def bits(self, key, first, count):
        index = torch.arange(first, first + count, dtype=torch.int64, device=self.device)
        x = index * wrapped(0x9E3779B97F4A7C15) + wrapped(key)
        x = (x ^ shifted(x, 30)) * wrapped(0xBF58476D1CE4E5B9)
        x = (x ^ shifted(x, 27)) * wrapped(0x94D049BB133111EB)
        return x ^ shifted(x, 31)

    def normal(self, bits):
        total = sum((bits >> (16 * i)) & 0xFFFF for i in range(4))
        return (total.float() - 131070.0) * float(numpy.float32(1.7320508) / 65536)

    def values(self, name, bits):
        unit = lambda: shifted(bits, 11).double() * 2.0**-53
        if name.endswith("A_log"):
            return torch.log(1 + 15 * unit())
        if name.endswith("dt_bias"):
            return torch.log(torch.expm1(0.001 * 100 ** unit()))
        if name.endswith("w2.bias"):
            return 0.25 * self.normal(bits)
        if name.endswith("norm.weight"):
            return torch.ones(bits.shape, device=self.device)
        scale = float(numpy.float32(0.02))
        if self.gentle and name == "model.embed_tokens.weight":
            scale *= 50
        elif self.gentle and name.endswith(("o_proj.weight", "down_proj.weight")):
            scale /= math.sqrt(2 * self.gentle)
        return scale * self.normal(bits)

    def __call__(self, name, *shape):
        key, total = self.hash(name), math.prod(shape)
        out = torch.empty(total, dtype=self.dtype, device=self.device)
        for first in range(0, total, self.BLOCK):
            count = min(self.BLOCK, total - first)
            values = self.values(name, self.bits(key, first, count))
            out[first : first + count] = values.float().to(torch.bfloat16).to(self.dtype)
        return out.reshape(shape)


def names(config):
    """Every tensor of a tied model with its shape."""
    c = config
    yield "model.embed_tokens.weight", (c.vocab, c.hidden)
    yield "model.norm.weight", (c.hidden,)
    keys, values, made = c.jet_heads * c.d_k, c.jet_heads * c.d_v, "dynamic_conv1d.kernel_generator."
    for i, kind in enumerate(c.layers):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{norm}.weight", (c.hidden,)
        yield at + "mlp.gate_proj.weight", (c.mlp, c.hidden)
        yield at + "mlp.up_proj.weight", (c.mlp, c.hidden)
        yield at + "mlp.down_proj.weight", (c.hidden, c.mlp)
        at += "self_attn."
        if kind != "jet":
            for part, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
                yield f"{at}{part}_proj.weight", (heads * c.head_dim, c.hidden)
                yield f"{at}{part}_proj.bias", (heads * c.head_dim,)
            yield at + "o_proj.weight", (c.hidden, c.heads * c.head_dim)
            continue
        for part, rows in (("q", keys), ("k", keys), ("v", values), ("g", values)):
            yield f"{at}{part}_proj.weight", (rows, c.hidden)
        for part in "ab":
            yield f"{at}{part}_proj.weight", (c.jet_heads, c.hidden)
        yield at + "A_log", (c.jet_heads,)
        yield at + "dt_bias", (c.jet_heads,)
        yield f"{at}{made}w1.weight", (c.generator, c.hidden)
        yield f"{at}{made}w2.weight", (values * c.taps, c.generator)
        yield f"{at}{made}w2.bias", (values * c.taps,)
        yield at + "o_norm.weight", (c.d_v,)
        yield at + "o_proj.weight", (c.hidden, values)


def write(folder, config, device):
    from safetensors.torch import save_file

    c, made = config, Dummy(0, torch.float32, device, gentle=len(config.layers))
    tensors = {n: made(n, *shape).to(torch.bfloat16).cpu() for n, shape in names(c)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"))
    jet = {"num_heads": c.jet_heads, "head_dim": c.d_k, "expand_v": round(c.d_v / c.d_k, 10)}
    jet |= {"conv_size": c.taps, "dconv_generator_reduction": 8, "norm_eps": "1e-5", "mode": "chunk"}
    about = {
        "architectures": ["JetNemotronForCausalLM"], "model_type": "jet_nemotron",
        "vocab_size": c.vocab, "hidden_size": c.hidden, "intermediate_size": c.mlp,
        "num_hidden_layers": len(c.layers), "layer_types": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "hidden_act": "silu", "rms_norm_eps": c.rms_eps, "rope_theta": c.theta,
        "rope_scaling": None, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "bos_token_id": 151643, "eos_token_id": 151643, "torch_dtype": "bfloat16",
        "use_mrope": False,
        "efficient_attention_config": {"jet": jet, "swa": {"window_size": c.window}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    return 0


# ---- the formulas -----------------------------------------------------------------------------


def rms(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def frequencies(config):
    """Inverse frequencies [head_dim / 2] and the scale of cos and sin (default and yarn)."""
    d, base = config.head_dim, config.theta
    plain = [base ** (-2 * i / d) for i in range(d // 2)]
    kind = (config.scaling or {}).get("rope_type", "default")
    if kind == "default":
        return plain, 1.0
    if kind != "yarn":
        raise SystemExit(f"rope type {kind} is not in the oracle")
    s = config.scaling
    factor, length = s["factor"], s["original_max_position_embeddings"]
    # The dimension whose wave makes `turns` turns over the original length.
    place = lambda turns: d * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))
    low = max(math.floor(place(s.get("beta_fast", 32))), 0)
    high = min(math.ceil(place(s.get("beta_slow", 1))), d - 1)
    out = []
    for i, f in enumerate(plain):
        ramp = min(max((i - low) / max(high - low, 0.001), 0), 1)
        out.append(f / factor * ramp + f * (1 - ramp))
    return out, s.get("attention_factor") or 0.1 * math.log(factor) + 1


def rounded(x):
    return x.to(torch.bfloat16).to(x.dtype)


class Model:
    """`r` is applied wherever jetd on a GPU keeps an activation in memory: nothing, or bf16."""

    def __init__(self, config, weights, dtype, device, r=lambda x: x):
        self.c, self.w, self.dtype, self.device, self.r = config, weights, dtype, device, r

    def rotate(self, x):
        inverse, scale = frequencies(self.c)
        angle = torch.arange(x.shape[0], device=self.device, dtype=torch.float64)[:, None]
        angle = angle * torch.tensor(inverse, device=self.device, dtype=torch.float64)
        angle = torch.cat([angle, angle], -1)[:, None]
        cos, sin = (angle.cos() * scale).to(self.dtype), (angle.sin() * scale).to(self.dtype)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def attention(self, y, at, windowed):
        c, w, r, tokens = self.c, self.w, self.r, y.shape[0]
        part = {}
        for name, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            weight = w(f"{at}{name}_proj.weight", heads * c.head_dim, c.hidden)
            bias = w(f"{at}{name}_proj.bias", heads * c.head_dim)
            part[name] = r(y @ weight.T + bias).view(tokens, heads, c.head_dim)
        q, k, v = r(self.rotate(part["q"])), r(self.rotate(part["k"])), part["v"]
        t = torch.arange(tokens, device=self.device)
        distance = t[:, None] - t[None, :]
        hidden = distance < 0
        if windowed:
            hidden |= distance >= c.window
        out = torch.empty_like(q)
        for head in range(c.heads):
            of = head // (c.heads // c.kv_heads)
            score = q[:, head] @ k[:, of].T / math.sqrt(c.head_dim)
            out[:, head] = score.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, of]
        out = r(out).reshape(tokens, -1)
        return out @ w(f"{at}o_proj.weight", c.hidden, c.heads * c.head_dim).T

    def jet(self, y, at):
        c, w, r, tokens = self.c, self.w, self.r, y.shape[0]
        keys, values = c.jet_heads * c.d_k, c.jet_heads * c.d_v
        normed = []
        for name in "qk":
            z = F.silu(r(y @ w(f"{at}{name}_proj.weight", keys, c.hidden).T))
            z = z.view(tokens, c.jet_heads, c.d_k)
            normed.append(z / torch.sqrt((z * z).sum(-1, keepdim=True) + 1e-6))
        q, k = r(normed[0] / math.sqrt(c.d_k)), r(normed[1])
        u = r(y @ w(f"{at}v_proj.weight", values, c.hidden).T)
        made = f"{at}dynamic_conv1d.kernel_generator."
        kern = r(F.silu(r(y @ w(f"{made}w1.weight", c.generator, c.hidden).T)))
        kern = r(kern @ w(f"{made}w2.weight", values * c.taps, c.generator).T)
        kern = (kern + w(f"{made}w2.bias", values * c.taps)).view(tokens, values, c.taps)
        late = F.pad(u, (0, 0, c.taps - 1, 0))
        v = sum(kern[:, :, tap] * late[tap : tap + tokens] for tap in range(c.taps))
        v = r(F.silu(v)).view(tokens, c.jet_heads, c.d_v)
        beta = torch.sigmoid(r(y @ w(f"{at}b_proj.weight", c.jet_heads, c.hidden).T))
        a = r(y @ w(f"{at}a_proj.weight", c.jet_heads, c.hidden).T)
        a = a + w(f"{at}dt_bias", c.jet_heads)
        decay = torch.exp(-torch.exp(w(f"{at}A_log", c.jet_heads)) * F.softplus(a))
        state = torch.zeros(c.jet_heads, c.d_k, c.d_v, dtype=self.dtype, device=self.device)
        o = torch.empty_like(v)
        for t in range(tokens):
            state = state * decay[t, :, None, None]
            fresh = beta[t, :, None] * (v[t] - torch.einsum("hkv,hk->hv", state, k[t]))
            state = state + k[t, :, :, None] * fresh[:, None, :]
            o[t] = torch.einsum("hkv,hk->hv", state, q[t])
        gate = F.silu(r(y @ w(f"{at}g_proj.weight", values, c.hidden).T)).view_as(o)
        o = r(rms(r(o), w(f"{at}o_norm.weight", c.d_v), c.norm_eps) * gate)
        return o.reshape(tokens, -1) @ w(f"{at}o_proj.weight", c.hidden, values).T

    @torch.no_grad()
    def logits(self, ids, rows):
        """Of the last `rows` positions."""
        c, w, r = self.c, self.w, self.r
        table = w("model.embed_tokens.weight", c.vocab, c.hidden)
        x = table[ids]
        for i, kind in enumerate(c.layers):
            at = f"model.layers.{i}."
            y = r(rms(x, w(at + "input_layernorm.weight", c.hidden), c.rms_eps))
            if kind == "jet":
                mixed = self.jet(y, at + "self_attn.")
            else:
                mixed = self.attention(y, at + "self_attn.", kind == "swa")
            x = r(x + r(mixed))
            y = r(rms(x, w(at + "post_attention_layernorm.weight", c.hidden), c.rms_eps))
            gate = F.silu(r(y @ w(at + "mlp.gate_proj.weight", c.mlp, c.hidden).T))
            up = r(y @ w(at + "mlp.up_proj.weight", c.mlp, c.hidden).T)
            x = r(x + r(r(gate * up) @ w(at + "mlp.down_proj.weight", c.hidden, c.mlp).T))
        x = r(rms(x[-rows:], w("model.norm.weight", c.hidden), c.rms_eps))
        head = table if c.tied else w("lm_head.weight", c.vocab, c.hidden)
        return x @ head.T


# ---- comparing --------------------------------------------------------------------------------


def error(out, reference):
    """Relative error of all of it, and of the worst row."""
    if not torch.isfinite(out).all():
        return math.inf, math.inf
    difference = (out - reference).double().norm(dim=-1)
    norm = reference.double().norm(dim=-1)
    whole = (difference.square().sum() / norm.square().sum()).sqrt().item()
    return whole, (difference / norm).max().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("tokens", type=int, nargs="?")
    parser.add_argument("rows", type=int, nargs="?")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--config", required=True)
    parser.add_argument("--dummy", type=int)
    parser.add_argument("--tolerance", type=float, default=2e-2)
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument("--dtype", default="float32")
    a = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, a.dtype)
    config, started = Config(a.config), time.time()
    if a.write:
        return write(a.folder, config, device)
    weights = Checkpoint(a.config, dtype, device) if a.dummy is None else Dummy(a.dummy, dtype, device)
    ids = numpy.fromfile(a.folder / f"{a.tokens}.prompt.i32", dtype=numpy.int32)
    ids = torch.from_numpy(ids).long().to(device)
    expected = Model(config, weights, dtype, device).logits(ids, a.rows).float()
    name, failures, outs, tolerance = pathlib.Path(a.config).name, 0, {}, a.tolerance
    print(f"{name}: oracle of {a.tokens} tokens in {time.time() - started:.1f} s on {device}")
    if a.rounding:
        lossy = Model(config, weights, dtype, device, rounded).logits(ids, a.rows).float()
        whole, worst = error(lossy, expected)
        tolerance = 1.2 * whole
        print(f"{name}: the oracle with bf16 activations: relative error {whole:.2e}, worst row {worst:.2e}")

    def report(what, out, reference):
        whole, worst = error(out, reference)
        verdict = "ok" if whole <= tolerance else "TOO FAR"
        print(f"{name} {a.tokens} tokens, {what}: relative error {whole:.2e}, worst row {worst:.2e}: {verdict}")
        return verdict != "ok"

    for way in ("whole", "ragged", "decoded"):
        flat = numpy.fromfile(a.folder / f"{a.tokens}.{way}.f32", dtype=numpy.float32)
        outs[way] = torch.from_numpy(flat).to(device).view(a.rows, config.vocab)
        failures += report(f"{way} against the oracle", outs[way], expected)
        same = (outs[way].argmax(-1) == expected.argmax(-1)).float().mean().item()
        print(f"{name} {a.tokens} tokens, {way}: arg-max as the oracle's in {same:.1%} of rows")
    for way in ("ragged", "decoded"):
        failures += report(f"{way} against whole", outs[way], outs["whole"])
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

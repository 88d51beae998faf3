"""VQ-KD, the visual tokenizer: an image becomes a sentence of discrete codes.

A transformer encodes every patch, the nearest vector of a codebook replaces it, and a small
decoder must predict the patch features of a frozen teacher from the codes alone. What the teacher
knows thus decides which patches share a word. Sources: BEiT v2 (arXiv 2208.06366) section 2.2 and
the released beit2/modeling_vqkd.py, whose parameter names are kept so that its tensors load.

Letters: B batch, N patches, D width, H heads, K head width, C code width.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from minibeit3.codebook import Codebook, check_tokens, nearest
from minibeit3.codebook import code_usage as code_usage  # part of the tokenizer's interface
from minibeit3.storage import write_file


@dataclass(frozen=True, kw_only=True)
class VQKDConfig:
    """Sizes and constants of one tokenizer; the defaults are the recommended public one.

    restart_dead: replace a code that no patch chose in 100 training batches (off in the release).
    seed: initial weights and the samples that k-means starts from.
    Raises ValueError for sizes that do not fit together.
    """

    image_size: int = 224
    patch: int = 16
    width: int = 768
    ffn_width: int = 3072
    heads: int = 12
    depth: int = 12
    decoder_depth: int = 3
    codes: int = 8192
    code_dim: int = 32
    teacher_dim: int = 512
    beta: float = 1.0
    decay: float = 0.99
    restart_dead: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{field.name} must be {kind.__name__}, got {value!r}")
            if kind is int and field.name != "seed" and value < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")
        if self.image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        if not (0 <= self.decay <= 1 and 0 <= self.beta < math.inf):
            raise ValueError(f"need 0 <= decay <= 1 and beta >= 0, got {self.decay}, {self.beta}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch


class Quantised(NamedTuple):
    """vectors: (B, N, C) code vectors, gradient passed straight through; tokens: int64 (B, N);
    commitment_loss: float32 scalar, beta included."""

    vectors: Tensor
    tokens: Tensor
    commitment_loss: Tensor


class VQKDOutput(NamedTuple):
    """loss = cosine_loss + commitment_loss, float32 scalars; tokens: int64 (B, N)."""

    loss: Tensor
    cosine_loss: Tensor
    commitment_loss: Tensor
    tokens: Tensor


class Attention(nn.Module):
    """Self-attention whose query and value have a bias and whose key has none (BEiT v2)."""

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "B N (three H K) -> three B H N K", three=3, H=self.heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(out, "B H N K -> B N (H K)"))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """Map (B, channels, h, w) to normalised patch tokens (B, N, D); the class token is dropped."""

    def __init__(self, config: VQKDConfig, *, channels: int, patch: int, depth: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(channels, config.width, patch, stride=patch)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = rearrange(self.patch_embed["proj"](x), "B D h w -> B (h w) D")
        cls = repeat(self.cls_token, "1 1 D -> B 1 D", B=len(x))
        x = torch.cat([cls, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:])


class VQKD(nn.Module):
    """Vector-quantised knowledge distillation: the tokenizer, its decoder and its loss.

    Images are float (B, 3, image_size, image_size) in [0, 1], always: the released code guesses the
    range from each batch's maximum, so that a dark batch means something else there.
    Only `forward` in train mode changes the codebook; everything else has no side effect.
    """

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encoder = Trunk(config, channels=3, patch=config.patch, depth=config.depth)
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dim)
        )
        self.codebook = Codebook(
            config.codes,
            config.code_dim,
            decay=config.decay,
            restart_dead=config.restart_dead,
            seed=config.seed,
        )
        self.decoder = Trunk(config, channels=config.code_dim, patch=1, depth=config.decoder_depth)
        self.decode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.teacher_dim)
        )
        generator = torch.Generator().manual_seed(config.seed)
        for name, value in self.named_parameters():
            if name == "encoder.patch_embed.proj.weight" and not value.is_meta:
                bound = value[0].numel() ** -0.5  # as torch starts it: see `init.initialise`
                nn.init.uniform_(value, -bound, bound, generator=generator)
            elif value.dim() > 1 and not value.is_meta:
                nn.init.trunc_normal_(value, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(value)

    def encode(self, image01: Tensor) -> Tensor:
        """float32 (B, N, C), the raw code vectors of an image, before they are normalised."""
        hidden = self.encoder(preprocess(image01, self.config.image_size))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.encode_task_layer(hidden.float())

    def quantise(self, raw: Tensor) -> Quantised:
        """Replace raw vectors (B, N, C) by their nearest codes; the codebook itself stays as it is.

        The gradient of the code vector is handed to the *normalised* vector unchanged, and the
        commitment loss is a mean over all elements (1/C of the squared distance).
        """
        self._require_start()
        with torch.autocast(raw.device.type, enabled=False):
            unit = F.normalize(raw.float(), dim=-1)
            tokens = nearest(unit.detach(), self.codebook.vectors)
            code = self.codebook.vectors[tokens]
            loss = self.config.beta * F.mse_loss(unit, code)
            return Quantised(unit + (code - unit).detach(), tokens, loss)

    @torch.no_grad()
    def tokens(self, image01: Tensor) -> Tensor:
        """int64 (B, N) codes of images in [0, 1], row by row; ValueError outside that range."""
        return self.quantise(self.encode(image01)).tokens

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, N, teacher_dim) features that int64 codes (B, N) stand for."""
        self._require_start()
        check_tokens(tokens, self.config.codes)
        if tokens.dim() != 2 or tokens.shape[1] != self.config.grid**2:
            raise ValueError(
                f"tokens must be (B, {self.config.grid**2}), got {tuple(tokens.shape)}: "
                f"one code for each patch of the {self.config.grid} x {self.config.grid} grid"
            )
        return self._decode(self.codebook.vectors[tokens])

    def features(self, image01: Tensor) -> Tensor:
        """(B, N, teacher_dim), the prediction of the teacher's features through the codes."""
        return self._decode(self.quantise(self.encode(image01)).vectors)

    def forward(self, image01: Tensor, target: Tensor) -> VQKDOutput:
        """Loss of images (B, 3, s, s) in [0, 1] against teacher features `target` (B, N, dim).

        In train mode the first batch starts the codebook and every batch moves it, after its codes
        were looked up. Raises ValueError for a wrong range or shape.
        """
        expected = (len(image01), self.config.grid**2, self.config.teacher_dim)
        if tuple(target.shape) != expected:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, this tokenizer needs {expected}: "
                "choose the teacher's patch size and teacher_dim to match the config"
            )
        raw = self.encode(image01)
        with torch.autocast(raw.device.type, enabled=False):
            unit = rearrange(F.normalize(raw.detach(), dim=-1), "B N C -> (B N) C")
            if self.training and not self.codebook.started:
                self.codebook.start(unit)
            vectors, tokens, commitment = self.quantise(raw)
            if self.training:
                self.codebook.learn(unit, tokens.flatten())
        predicted = self._decode(vectors).float()
        cosine = 1 - F.cosine_similarity(predicted, target.float(), dim=-1).mean()
        return VQKDOutput(cosine + commitment, cosine, commitment, tokens)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors, each atomically; parameters as `dtype`.

        Buffers keep their dtype: a codebook rounded to 16 bits would change tokens.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()
        }
        state |= {name: state[name].to(dtype) for name, _ in self.named_parameters()}
        write_file(folder / "model.safetensors", save(state))
        text = json.dumps({"model": "vqkd", **asdict(self.config)}, indent=2) + "\n"
        write_file(folder / "config.json", text.encode())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "VQKD":
        """The tokenizer saved in `folder`, float32, eval mode.

        Raises FileNotFoundError, or ValueError that names the file and every field or tensor which
        is missing, unexpected, of the wrong shape or not finite.
        """
        folder = Path(folder)
        try:
            stored = json.loads((folder / "config.json").read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from error
        if not isinstance(stored, dict) or stored.pop("model", None) != "vqkd":
            raise ValueError(f"{folder / 'config.json'} does not describe a vqkd model")
        if wrong := stored.keys() ^ {field.name for field in fields(VQKDConfig)}:
            raise ValueError(f"{folder / 'config.json'}: unknown or missing fields {sorted(wrong)}")
        config = VQKDConfig(**stored)
        try:
            state = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
        for name in ("encoder", "decoder"):  # before a made-up depth costs time
            depth = config.depth if name == "encoder" else config.decoder_depth
            if _depth(state, f"{name}.blocks.") != depth:
                raise ValueError(
                    f"{folder}: config.json and tensors differ in {name} depth {depth}"
                )
        with torch.device("meta"):
            model = cls(config)
        _check_state(state, {k: v.shape for k, v in model.state_dict().items()}, str(folder))
        return _filled(model, state)

    def _decode(self, vectors: Tensor) -> Tensor:
        grid = rearrange(vectors, "B (h w) C -> B C h w", h=self.config.grid)
        return self.decode_task_layer(self.decoder(grid))

    def _require_start(self) -> None:
        if not self.codebook.started:
            raise ValueError(
                "the codebook is empty: run one training batch, or load a trained tokenizer"
            )


def preprocess(image01: Tensor, image_size: int) -> Tensor:
    """Images float (B, 3, image_size, image_size) from [0, 1] to [-1, 1]; ValueError otherwise."""
    if image01.dim() != 4 or tuple(image01.shape[1:]) != (3, image_size, image_size):
        raise ValueError(
            f"images must be (B, 3, {image_size}, {image_size}), got {tuple(image01.shape)}: resize"
        )
    if not image01.is_floating_point():
        raise ValueError(f"images must be float in [0, 1], got {image01.dtype}: divide by 255")
    low, high = (x.item() for x in image01.aminmax()) if image01.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got {low:.4g} to {high:.4g}: "
            "divide bytes by 255, undo any mean/std normalisation, clamp after bicubic resizing"
        )
    return image01 * 2 - 1


def load_released_vqkd(
    source: str | Path | Mapping[str, Tensor],
    *,
    heads: int | None = None,
    image_size: int | None = None,
) -> VQKD:
    """The BEiT v2 tokenizer of a released checkpoint file or state dict; float32, eval mode.

    Sizes are read from the tensors. heads: default width / 64, which no tensor shows.
    image_size: interpolates both position tables to this size; None keeps the stored grid.
    Keys that start with loss, teacher or scaling are dropped, as the release does.
    Raises ValueError that lists every tensor which is missing, unexpected, of the wrong shape or
    not finite; a file is read with weights_only, so that nothing in it is executed.
    """
    state = _released_state(source)
    config = _released_config(state, heads)
    with torch.device("meta"):
        model = VQKD(config)
    shapes = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("codebook.")}
    v, c = config.codes, config.code_dim
    shapes["quantize.embedding.initted"] = torch.Size([1])
    for name in ("quantize.cluster_size", "quantize.embedding.cluster_size"):
        shapes[name] = torch.Size([v])
    for name in ("quantize.embedding.weight", "quantize.embedding.embed_avg"):
        shapes[name] = torch.Size([v, c])
    _check_state(state, shapes, "released VQ-KD")
    ours = {name: value for name, value in state.items() if not name.startswith("quantize.")}
    ours["codebook.vectors"] = state["quantize.embedding.weight"]
    ours["codebook.started"] = state["quantize.embedding.initted"][0] != 0
    ours["codebook.idle"] = torch.zeros(v, dtype=torch.int64)
    if image_size is not None and image_size != config.image_size:
        config = VQKDConfig(**{**asdict(config), "image_size": image_size})
        with torch.device("meta"):
            model = VQKD(config)
        for name in ("encoder.pos_embed", "decoder.pos_embed"):
            ours[name] = _resize_positions(ours[name].float(), config.grid)
    return _filled(model, ours)


def _released_state(source: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by released name, from a checkpoint's "model", else "state_dict", else itself."""
    loaded: object = source
    if isinstance(source, str | Path):
        try:
            loaded = torch.load(source, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged file raises any of ten types
            raise ValueError(f"{source} is not a checkpoint of plain tensors: {error}") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(f"expected a state dict with string keys, got {type(loaded).__name__}")
    return {k: v for k, v in loaded.items() if not k.startswith(("loss", "teacher", "scaling"))}


def _released_config(state: Mapping[str, Tensor], heads: int | None) -> VQKDConfig:
    """Sizes that the tensors of a released state dict show."""
    dims = {
        "encoder.patch_embed.proj.weight": 4,
        "encoder.pos_embed": 3,
        "encoder.blocks.0.mlp.fc1.weight": 2,
        "decoder.blocks.0.mlp.fc1.weight": 2,
        "quantize.embedding.weight": 2,
        "decode_task_layer.2.weight": 2,
    }
    if wrong := [
        name
        for name, dim in dims.items()
        if not isinstance(state.get(name), Tensor) or state[name].dim() != dim
    ]:
        raise ValueError(f"not a VQ-KD state dict, missing or wrong dimensions: {', '.join(wrong)}")
    width, _, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    patches = state["encoder.pos_embed"].shape[1] - 1
    grid = math.isqrt(max(patches, 0))
    if grid**2 != patches:
        raise ValueError(f"encoder.pos_embed holds {patches} patches, which is not a square grid")
    if heads is None and width % 64:
        raise ValueError(f"width {width} is no multiple of 64, so give the number of heads: heads=")
    codes, code_dim = state["quantize.embedding.weight"].shape
    return VQKDConfig(
        image_size=grid * patch,
        patch=patch,
        width=width,
        ffn_width=state["encoder.blocks.0.mlp.fc1.weight"].shape[0],
        heads=width // 64 if heads is None else heads,
        depth=_depth(state, "encoder.blocks."),
        decoder_depth=_depth(state, "decoder.blocks."),
        codes=codes,
        code_dim=code_dim,
        teacher_dim=state["decode_task_layer.2.weight"].shape[0],
    )


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of distinct layers; counted, so that a key "blocks.999999999" builds nothing."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _check_state(state: Mapping[str, object], shapes: Mapping[str, torch.Size], what: str) -> None:
    """ValueError that lists every tensor of `state` which does not fit `shapes`."""
    problems = [f"missing {name}" for name in shapes.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - shapes.keys()]
    for name in shapes.keys() & state.keys():
        value = state[name]
        if not isinstance(value, Tensor):
            problems.append(f"{name} is {type(value).__name__}, not a tensor")
        elif value.shape != shapes[name]:
            problems.append(f"{name} has shape {tuple(value.shape)}, not {tuple(shapes[name])}")
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            problems.append(f"{name} claims more values than its storage holds")
        elif not value.isfinite().all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise ValueError(f"{what}: {len(problems)} problems: " + "; ".join(sorted(problems)))


def _filled(model: VQKD, state: Mapping[str, Tensor]) -> VQKD:
    """`model`, built on the meta device, with copies of the tensors of `state`; eval mode."""
    own = {
        name: state[name].to(value.dtype, copy=True) for name, value in model.state_dict().items()
    }
    model.load_state_dict(own, assign=True)
    return model.eval()


def _resize_positions(table: Tensor, grid: int) -> Tensor:
    """Position table (1, 1 + N, D) for another grid; the class row stays, the rest is bicubic."""
    side = math.isqrt(table.shape[1] - 1)
    rows = rearrange(table[:, 1:], "1 (h w) D -> 1 D h w", h=side)
    rows = F.interpolate(rows, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], rearrange(rows, "1 D h w -> 1 (h w) D")], dim=1)

"""Every family as a case: how to build it, how to call it, and what the library itself says it did.

``codes`` and ``codebooks`` are read by the library's own means (what it returned, its own properties), never by those
of vqwatch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import standins
import torch
from libraries import audiocraft, library
from torch import Tensor, nn

DIM, SIZE, DEPTH = 8, 16, 3


@dataclass(frozen=True)
class Case:
    """A quantizer and its library's own account of itself.

    ``run`` returns the output, a loss and one codes tensor per layer (None for a layer that was dropped). ``chains``
    holds, for each residual stack, the modules that are called one after another, each with what the former left;
    where layers are not called, ``inputs`` is asked after a forward what they got. ``codebooks`` and ``averages``
    return one tensor [K, D] (or a pair) per layer. ``scales`` holds the factor by which a stack divides the input of
    each layer. ``settings`` are decay, threshold and threshold_ratio.
    """

    name: str
    distribution: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Sequence[Tensor | None]]]
    codebooks: Callable[[nn.Module], Sequence[Tensor]]
    kind: str = "ema"
    layout: str = "last"
    chains: Callable[[nn.Module], Sequence[Sequence[nn.Module]]] | None = None
    averages: Callable[[nn.Module], Sequence[tuple[Tensor, Tensor]]] | None = None
    scales: Callable[[nn.Module], Sequence[Tensor]] | None = None
    inputs: Callable[[nn.Module, Tensor], Sequence[Sequence[Tensor]]] | None = None
    layers: int = DEPTH
    settings: tuple[float | None, float | None, float | None] = (None, None, None)
    steps: int = 4
    exact_residuals: bool = True


def laid_out(vectors: Tensor, layout: str) -> Tensor:
    """Turn vectors [B, T, D] into what a family takes: "last", "first" [B, D, T], "image" [B, D, T/2, 2] or "flat"."""
    if layout == "first":
        return vectors.movedim(-1, 1)
    if layout == "image":
        b, t, d = vectors.shape
        return vectors.reshape(b, t // 2, 2, d).movedim(-1, 1)
    if layout == "image last":
        b, t, d = vectors.shape
        return vectors.reshape(b, t // 2, 2, d)
    return vectors.flatten(0, 1) if layout == "flat" else vectors


# --- vector-quantize-pytorch ------------------------------------------------------------------------------------


def _lucidrains(name: str, build: Callable[[Any], nn.Module], kind: str = "ema", **more: Any) -> Case:
    def make() -> nn.Module:
        return build(library("vector_quantize_pytorch"))

    def books(quantizer: nn.Module) -> list[nn.Module]:
        return [m._codebook for m in quantizer.modules() if hasattr(m, "_codebook")]

    defaults: dict[str, Any] = {
        "run": lambda q, z: _stacked(q(z)),
        "codebooks": lambda q: [book.embed for book in books(q)],
        "averages": (lambda q: [(b.cluster_size, b.embed_avg) for b in books(q)]) if kind == "ema" else None,
        "chains": lambda q: [list(q.layers)],
        "settings": (0.8, None, None),
    }
    return Case(f"vector-quantize-pytorch {name}", "vector-quantize-pytorch", make, kind=kind, **{**defaults, **more})


def _stacked(output: Any) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Read (quantized, codes [..., Q], losses): a layer that was dropped out has -1 everywhere."""
    quantized, codes = output[0], output[1]
    loss = output[2].sum() if len(output) > 2 else quantized.sum() * 0
    return quantized, loss, [None if bool((c == -1).all()) else c for c in codes.unbind(-1)]


def _single(output: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    return output[0], output[2].sum() if len(output) > 2 else output[0].sum() * 0, [output[1]]


def _grouped(output: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    quantized, codes, losses = output
    return quantized, losses.sum(), [row for group in codes for row in group.unbind(-1)]


def _masked(quantizer: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    mask = torch.arange(z.shape[1])[None] < torch.tensor([[z.shape[1]], [z.shape[1] // 2]])
    return _stacked(quantizer(z, mask=mask))


LUCIDRAINS = [
    _lucidrains(
        "ResidualVQ",
        lambda vq: vq.ResidualVQ(
            dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, kmeans_init=True, threshold_ema_dead_code=2
        ),
        settings=(0.8, 2.0, None),
    ),
    _lucidrains(
        "VectorQuantize",
        lambda vq: vq.VectorQuantize(dim=DIM, codebook_size=SIZE, codebook_dim=4),
        run=lambda q, z: _single(q(z)),
        chains=lambda q: [[q]],
        layers=1,
    ),
    _lucidrains(
        "VectorQuantize, image, multi-head",
        lambda vq: vq.VectorQuantize(
            dim=DIM,
            codebook_size=SIZE,
            codebook_dim=4,
            heads=2,
            separate_codebook_per_head=True,
            accept_image_fmap=True,
        ),
        run=lambda q, z: _single(q(z)),
        chains=lambda q: [[q]],
        layout="image",
        layers=1,
    ),
    _lucidrains(
        "VectorQuantize, cosine, channels first, shared heads",
        lambda vq: vq.VectorQuantize(
            dim=DIM, codebook_size=SIZE, codebook_dim=4, heads=2, use_cosine_sim=True, channel_last=False
        ),
        run=lambda q, z: _single(q(z)),
        chains=lambda q: [[q]],
        layout="first",
        layers=1,
    ),
    _lucidrains(
        "ResidualVQ, shared codebook",
        lambda vq: vq.ResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, shared_codebook=True),
    ),
    _lucidrains(
        "ResidualVQ, quantizer dropout",
        lambda vq: vq.ResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, quantize_dropout=True),
        steps=8,
    ),
    _lucidrains(
        "ResidualVQ, masked",
        lambda vq: vq.ResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH),
        run=_masked,
        chains=None,
    ),
    _lucidrains(
        "ResidualVQ, learnable",
        lambda vq: vq.ResidualVQ(
            dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, learnable_codebook=True, ema_update=False
        ),
        kind="learned",
    ),
    _lucidrains(
        "ResidualVQ, affine",
        lambda vq: vq.ResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, affine_param=True),
    ),
    _lucidrains(
        "GroupedResidualVQ",
        lambda vq: vq.GroupedResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, groups=2),
        run=lambda q, z: _grouped(q(z)),
        chains=lambda q: [list(rvq.layers) for rvq in q.rvqs],
        layers=2 * DEPTH,
    ),
]

BEAMS = _lucidrains(
    "ResidualVQ, beam search",
    lambda vq: vq.ResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH, beam_size=2),
    chains=None,
)

NO_CODEBOOK = [
    _lucidrains(
        "FSQ",
        lambda vq: vq.FSQ(levels=[5, 4, 3], dim=DIM),
        kind="implicit",
        run=lambda q, z: _single(q(z)),
        chains=lambda q: [[q]],
        codebooks=lambda _q: [],
        layers=1,
        settings=(None, None, None),
    ),
    _lucidrains(
        "ResidualFSQ",
        lambda vq: vq.ResidualFSQ(levels=[5, 4, 3], dim=DIM, num_quantizers=DEPTH),
        kind="implicit",
        codebooks=lambda _q: [],
        scales=lambda q: list(q.scales),
        settings=(None, None, None),
        exact_residuals=False,
    ),
    _lucidrains(
        "LFQ, image",
        lambda vq: vq.LFQ(codebook_size=SIZE, dim=DIM),
        kind="implicit",
        run=lambda q, z: _single(q(z)[:2]),
        chains=lambda q: [[q]],
        codebooks=lambda _q: [],
        layout="image",
        layers=1,
        settings=(None, None, None),
    ),
    _lucidrains(
        "ResidualLFQ",
        lambda vq: vq.ResidualLFQ(codebook_size=SIZE, dim=DIM, num_quantizers=DEPTH),
        kind="implicit",
        codebooks=lambda _q: [],
        settings=(None, None, None),
    ),
]

SIMVQ = [
    _lucidrains(
        "SimVQ, channels first",
        lambda vq: vq.SimVQ(dim=DIM, codebook_size=SIZE, channel_first=True),
        kind="learned",
        run=lambda q, z: _single(q(z)),
        codebooks=lambda q: [q.codebook],
        chains=lambda q: [[q]],
        layout="first",
        layers=1,
        settings=(None, None, None),
    ),
    _lucidrains(
        "ResidualSimVQ",
        lambda vq: vq.ResidualSimVQ(dim=DIM, codebook_size=SIZE, num_quantizers=DEPTH),
        kind="learned",
        codebooks=lambda q: [layer.codebook for layer in q.layers],
        settings=(None, None, None),
    ),
]


# --- the codecs -------------------------------------------------------------------------------------------------


def _codec_chain(quantizer: nn.Module) -> list[list[nn.Module]]:
    return [list(quantizer.vq.layers)]


def _codec_averages(quantizer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(layer._codebook.cluster_size, layer._codebook.embed_avg) for layer in quantizer.vq.layers]


def _codec(name: str, build: Callable[[], nn.Module], run: Callable[..., Any], **more: Any) -> Case:
    return Case(
        name, name.split(",")[0], build, run, lambda q: [layer.codebook for layer in q.vq.layers], layout="first",
        chains=_codec_chain, averages=_codec_averages, settings=(0.99, 2.0, None), **more,
    )  # fmt: skip


def _bandwidth(quantizer: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """encodec trains with a bandwidth drawn for each batch: fewer layers are called and returned."""
    count = int(torch.randint(1, DEPTH + 1, ()))
    result = quantizer(z, 1000, bandwidth=count * quantizer.get_bandwidth_per_quantizer(1000))
    return result.quantized, result.penalty, [*result.codes, *[None] * (DEPTH - len(result.codes))]


def _dropped(result: Any) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    codes = list(result.codes.unbind(1))
    return result.x, result.penalty, [*codes, *[None] * (DEPTH - len(codes))]


def _mimi_run(quantizer: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    result = quantizer(z, 12)
    return result.x, result.penalty, list(result.codes.unbind(1))


def _mimi_books(quantizer: nn.Module) -> list[Any]:
    return [layer._codebook for rvq in (quantizer.rvq_first, quantizer.rvq_rest) for layer in rvq.vq.layers]


def _mimi_embedding(book: nn.Module) -> Tensor:
    """Read the library's property on a copy: it registers a buffer on the module that it is asked of."""
    other = copy.copy(book)
    other._buffers = dict(book._buffers)
    return other.embedding


def _dac_run(quantizer: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    quantized, codes, _, commitment, codebook = quantizer(z)
    return quantized, (commitment + codebook).mean(), list(codes.unbind(1))


CODECS = [
    _codec(
        "encodec",
        lambda: library("encodec.quantization.vq", "encodec").ResidualVectorQuantizer(DIM, DEPTH, SIZE, kmeans_iters=5),
        _bandwidth,
        steps=8,
    ),
    _codec(
        "audiocraft",
        lambda: audiocraft().ResidualVectorQuantizer(DIM, DEPTH, True, SIZE, kmeans_iters=5),
        lambda q, z: _dropped(q(z, 50)),
        steps=8,
    ),
    _codec(
        "speechtokenizer",
        lambda: library("speechtokenizer.quantization.vq", "speechtokenizer").ResidualVectorQuantizer(
            DIM, DEPTH, SIZE, kmeans_iters=5
        ),
        lambda q, z: (lambda quantized, codes, loss, _: (quantized, loss, list(codes)))(*q(z)),
    ),
    Case(
        "moshi",
        "moshi",
        lambda: library("moshi.quantization", "moshi").SplitResidualVectorQuantizer(
            n_q=DEPTH, dimension=DIM, bins=SIZE
        ),
        _mimi_run,
        lambda q: [_mimi_embedding(book) for book in _mimi_books(q)],
        layout="first",
        chains=lambda q: [list(q.rvq_first.vq.layers), list(q.rvq_rest.vq.layers)],
        averages=lambda q: [(book.cluster_usage, book.embedding_sum) for book in _mimi_books(q)],
        settings=(0.99, None, 0.1),
        steps=8,
    ),
    Case(
        "descript-audio-codec",
        "descript-audio-codec",
        lambda: library("dac.nn.quantize", "dac", "dac.nn").ResidualVectorQuantize(
            DIM, DEPTH, SIZE, 4, quantizer_dropout=0.5
        ),
        _dac_run,
        lambda q: [layer.codebook.weight for layer in q.quantizers],
        kind="learned",
        layout="first",
        chains=lambda q: [list(q.quantizers)],
    ),
]


# --- transformers -----------------------------------------------------------------------------------------------


def _transformers(model: str, stack: str, config: dict[str, Any]) -> nn.Module:
    module = library(f"transformers.models.{model}.modeling_{model}")
    built: nn.Module = getattr(module, stack)(getattr(module, f"{model.title()}Config")(**config))
    for value in built.buffers():
        if value.dim() == 2:
            nn.init.normal_(value)
    return built


def _encoded(quantizer: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    codes = quantizer.encode(z)
    return z, z.sum() * 0, list(codes)


def _by_hand(layers: Sequence[nn.Module], z: Tensor) -> list[Tensor]:
    """Return what each layer of a stack without forward gets, by the library's own unhooked methods."""
    residual, inputs = z.detach(), []
    for layer in layers:
        inputs.append(residual)
        plain = type(layer)
        residual = residual - plain.decode(layer, plain.encode(layer, residual))
    return inputs


_HF_CODEC = {"codebook_size": SIZE, "codebook_dim": DIM, "hidden_size": DIM}

TRANSFORMERS = [
    Case(
        "transformers Encodec",
        "transformers",
        lambda: _transformers("encodec", "EncodecResidualVectorQuantizer", {**_HF_CODEC, "target_bandwidths": [2.25]}),
        _encoded,
        lambda q: [layer.codebook.embed for layer in q.layers],
        kind="frozen",
        layout="first",
        inputs=lambda q, z: [_by_hand(q.layers, z)],
        layers=7,
    ),
    Case(
        "transformers Mimi",
        "transformers",
        lambda: _transformers(
            "mimi",
            "MimiSplitResidualVectorQuantizer",
            {**_HF_CODEC, "num_quantizers": DEPTH, "vector_quantization_hidden_dimension": DIM},
        ),
        _encoded,
        lambda q: [
            (layer.codebook.embed_sum / layer.codebook.cluster_usage.clamp(1e-5)[:, None])
            for stack in (q.semantic_residual_vector_quantizer, q.acoustic_residual_vector_quantizer)
            for layer in stack.layers
        ],
        kind="frozen",
        layout="first",
        inputs=lambda q, z: [
            _by_hand(q.semantic_residual_vector_quantizer.layers, z),
            _by_hand(q.acoustic_residual_vector_quantizer.layers, z),
        ],
    ),
    Case(
        "transformers Dac",
        "transformers",
        lambda: _transformers(
            "dac",
            "DacResidualVectorQuantizer",
            {"hidden_size": DIM, "n_codebooks": DEPTH, "codebook_size": SIZE, "codebook_dim": 4},
        ),
        lambda q, z: (lambda quantized, codes, _, a, b: (quantized, (a + b).mean(), list(codes.unbind(1))))(*q(z)),
        lambda q: [layer.codebook.weight for layer in q.quantizers],
        kind="learned",
        layout="first",
        chains=lambda q: [list(q.quantizers)],
    ),
]


# --- families without a package ---------------------------------------------------------------------------------


def _standin(name: str, build: Callable[[], nn.Module], run: Callable[..., Any], **more: Any) -> Case:
    return Case(name, "", build, run, **more)


def _rows(quantizer: nn.Module) -> list[Tensor]:
    return [layer.embedding.weight for layer in quantizer.layers]


def _taming(name: str, build: Callable[[], nn.Module], **more: Any) -> Case:
    defaults: dict[str, Any] = {"kind": "learned", "codebooks": lambda q: [q.embedding.weight]}
    return _standin(
        f"taming-transformers {name}", build, lambda q, z: (lambda out: (out[0], out[1], [out[2][2]]))(q(z)),
        layout="image", layers=1, chains=lambda q: [[q]], **{**defaults, **more},
    )  # fmt: skip


def _kakao(name: str, shared: bool) -> Case:
    def books(q: nn.Module) -> list[Any]:
        return list(q.codebooks)

    return _standin(
        f"rq-vae-transformer{name}",
        lambda: standins.RQBottleneck(SIZE, DIM, DEPTH, shared_codebook=shared),
        lambda q, z: _stacked((lambda out: (out[0], out[2], out[1][None]))(q(z))),
        codebooks=lambda q: [book.weight[:-1] for book in books(q)],
        averages=lambda q: [(book.cluster_size_ema, book.embed_ema) for book in books(q)],
        chains=lambda q: [books(q)],
        layout="image last",
        settings=(0.99, 1.0, None),
    )


def _grid_run(quantizer: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """GRID's codes mean nothing, and are all 0, for layers whose buffer is not full yet."""
    codes, quantized, loss = quantizer.model_step(z)
    ready = _grid_ready(quantizer)
    return quantized, loss, [c if r else None for c, r in zip(codes.unbind(-1), ready, strict=True)]


def _grid_ready(quantizer: nn.Module) -> list[bool]:
    return [layer.is_initialized or layer.is_initial_step for layer in quantizer.quantization_layer_list]


STANDINS = [
    _standin(
        "the proposal",
        lambda: standins.Residual([standins.VectorQuantizerEMA(SIZE, DIM) for _ in range(DEPTH)]),
        lambda q, z: _stacked((lambda out: (out[0], out[2], out[1][None]))(q(z))),
        codebooks=lambda q: [layer.embedding for layer in q.layers],
        averages=lambda q: [(layer.ema_cluster_size, layer.ema_w) for layer in q.layers],
        chains=lambda q: [list(q.layers)],
        settings=(0.99, None, None),
    ),
    _taming("VectorQuantizer", lambda: standins.VectorQuantizer(SIZE, DIM)),
    _taming("VectorQuantizer2", lambda: standins.VectorQuantizer2(SIZE, DIM)),
    _taming("GumbelQuantize", lambda: standins.GumbelQuantize(SIZE, DIM), codebooks=lambda q: [q.embed.weight]),
    _taming(
        "EMAVectorQuantizer",
        lambda: standins.EMAVectorQuantizer(SIZE, DIM),
        kind="ema",
        averages=lambda q: [(q.embedding.cluster_size, q.embedding.embed_avg)],
        settings=(0.99, None, None),
    ),
    _kakao("", shared=False),
    _kakao(", shared codebook", shared=True),
    _standin(
        "LC-Rec",
        lambda: standins.Residual([standins.SinkhornVectorQuantizer(SIZE, DIM) for _ in range(DEPTH)]),
        lambda q, z: _stacked((lambda out: (out[0], out[2], out[1][None]))(q(z))),
        codebooks=_rows,
        kind="learned",
        layout="flat",
        chains=lambda q: [list(q.layers)],
    ),
    _standin(
        "LETTER",
        lambda: standins.Residual([standins.LabelledVectorQuantizer(SIZE, DIM) for _ in range(DEPTH)]),
        lambda q, z: _stacked((lambda out: (out[0], out[2], out[1][None]))(q(z, torch.zeros(len(z))))),
        codebooks=_rows,
        kind="learned",
        layout="flat",
        chains=lambda q: [list(q.layers)],
    ),
    _standin(
        "RQ-VAE-Recommender",
        lambda: standins.RqVae(SIZE, DIM, DEPTH),
        lambda q, z: (lambda total, loss, ids: (total, loss, list(ids.unbind(-1))))(*q.get_semantic_ids(z)),
        codebooks=lambda q: [layer.out_proj(layer.weight) for layer in q.layers],
        kind="learned",
        layout="flat",
        chains=lambda q: [list(q.layers)],
    ),
    _standin(
        "GRID",
        lambda: standins.ResidualQuantization(SIZE, DIM, DEPTH, init_buffer_size=32),
        _grid_run,
        codebooks=lambda q: [layer.centroids for layer in q.quantization_layer_list],
        inputs=lambda q, _z: [[v for v, ready in zip(q.given, _grid_ready(q), strict=True) if ready]],
        kind="learned",
        layout="flat",
        steps=12,
    ),
    _standin(
        "jukebox",
        lambda: standins.BottleneckBlock(SIZE, DIM),
        lambda q, z: (lambda codes, passed, loss, _: (passed, loss, [codes]))(*q(z)),
        codebooks=lambda q: [q.k],
        averages=lambda q: [(q.k_elem, q.k_sum)],
        layout="first",
        layers=1,
        chains=lambda q: [[q]],
        settings=(0.99, 1.0, None),
    ),
]

CASES = [*LUCIDRAINS, BEAMS, *NO_CODEBOOK, *SIMVQ, *CODECS, *TRANSFORMERS, *STANDINS]

_OLD_NAMES = ("ResidualVQ", "VectorQuantize", "shared codebook", "quantizer dropout", "cosine", "learnable", "Grouped")
OLD = [*(case for case in LUCIDRAINS if any(name in case.name for name in _OLD_NAMES)), *NO_CODEBOOK]
"""What vector-quantize-pytorch 1.14 could do already, under the same names."""

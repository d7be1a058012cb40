"""Neighborhood attention against a loop over queries and keys."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import neighborhood_aggregate, neighborhood_attention, neighborhood_bias, neighborhood_scores, record_attention
from visionattn.kernels.neighborhood import fast
from visionattn.kernels.selftest import draw_qkv, relative

BACKENDS = ("torch", "reference")


def keys_of(position: int, length: int, kernel: int, dilation: int, border: str) -> list[int | None]:
    """The keys of a position along one axis, None for those outside."""
    centred = [position + (tap - kernel // 2) * dilation for tap in range(kernel)]
    if border == "mask":
        return [key if 0 <= key < length else None for key in centred]
    while centred[0] < 0:
        centred = [key + dilation for key in centred]
    while centred[-1] >= length:
        centred = [key - dilation for key in centred]
    return list(centred)


def by_hand(q, k, v, kernel, dilation, bias, scale, border) -> torch.Tensor:
    """The definition, one query after the other."""
    out = torch.empty_like(v)
    _, height, width, heads, _ = q.shape
    for row in range(height):
        for col in range(width):
            rows = keys_of(row, height, kernel[0], dilation[0], border)
            cols = keys_of(col, width, kernel[1], dilation[1], border)
            pairs = [(r, c) for r in rows for c in cols if r is not None and c is not None]
            for head in range(heads):
                scores = []
                for r, c in pairs:
                    score = (q[:, row, col, head] * scale * k[:, r, c, head]).sum(-1)
                    if bias is not None:
                        score = score + bias[head, (r - row) // dilation[0] + kernel[0] - 1, (c - col) // dilation[1] + kernel[1] - 1]
                    scores.append(score)
                weights = torch.stack(scores, -1).softmax(-1)  # B keys
                values = torch.stack([v[:, r, c, head] for r, c in pairs], 1)  # B keys d
                out[:, row, col, head] = (weights.unsqueeze(-1) * values).sum(1)
    return out


def inputs(batch: int, height: int, width: int, heads: int, dim: int, kernel: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (tensor.to(dtype) for tensor in draw_qkv((batch, height, width, heads, dim), generator))
    return [q, k, v, torch.rand(heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1, generator=generator, dtype=dtype) - 0.5]


CASES = [  # batch, height, width, heads, dim, kernel, dilation
    (2, 7, 7, 2, 8, (7, 7), (1, 1)),
    (1, 8, 13, 3, 4, (3, 5), (1, 1)),
    (1, 11, 9, 1, 6, (5, 3), (2, 3)),  # residue classes of two lengths
    (2, 6, 10, 2, 4, (3, 3), (2, 2)),
    (1, 5, 6, 1, 4, (1, 3), (4, 2)),
]


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "kernel", "dilation"), CASES)
@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_loop(batch, height, width, heads, dim, kernel, dilation, border, with_bias, backend) -> None:
    tensors = inputs(batch, height, width, heads, dim, kernel, torch.float64)
    want = {True: tensors[3], False: None}[with_bias]
    exact = by_hand(*tensors[:3], kernel, dilation, want, dim**-0.5, border)
    q, k, v, table = tensors
    got = neighborhood_attention(q, k, v, kernel, dilation, bias=table if with_bias else None, border=border, backend=backend)
    assert (got - exact).abs().max() <= 1e-14 * exact.abs().max()


def test_one_number_for_both_axes_and_a_scale() -> None:
    q, k, v, bias = inputs(1, 8, 7, 2, 4, (3, 3), torch.float64)
    got = neighborhood_attention(q, k, v, 3, 2, bias=bias, scale=0.3)
    assert torch.allclose(got, by_hand(q, k, v, (3, 3), (2, 2), bias, 0.3, "shift"), atol=1e-14)


def test_a_map_smaller_than_the_window_with_mask() -> None:
    q, k, v, bias = inputs(2, 2, 3, 2, 4, (5, 5), torch.float64)
    got = neighborhood_attention(q, k, v, 5, bias=bias, border="mask")
    assert torch.allclose(got, by_hand(q, k, v, (5, 5), (1, 1), bias, 0.5, "mask"), atol=1e-14)


def test_the_halves() -> None:
    q, k, v, bias = inputs(1, 4, 5, 2, 4, (3, 3), torch.float64)
    scores = neighborhood_scores(q, k, 3, bias=bias, border="mask")
    assert scores.shape == (1, 4, 5, 2, 9)
    assert torch.isneginf(scores[0, 0, 0, 0]).tolist() == [True, True, True, True, False, False, True, False, False]
    assert scores[0, 1, 2, 1, 4] == pytest.approx(float(q[0, 1, 2, 1] @ k[0, 1, 2, 1] / 2 + bias[1, 2, 2]))
    # What is outside adds nothing, whatever its weight.
    total = neighborhood_aggregate(torch.ones_like(scores), torch.ones_like(v), 3, border="mask")
    assert total[0, 0, 0, 0, 0] == 4 and total[0, 0, 1, 0, 0] == 6 and total[0, 1, 1, 0, 0] == 9


def test_the_bias_of_each_position() -> None:
    table = torch.randn(2, 5, 9, dtype=torch.float64)
    q = torch.zeros(1, 7, 12, 2, 1, dtype=torch.float64)
    expanded = neighborhood_bias(table, 7, 12, (1, 2))
    assert torch.equal(neighborhood_scores(q, q, (3, 5), (1, 2), bias=table)[0], expanded.permute(1, 2, 0, 3))
    with pytest.raises(ValueError, match=r"neighborhood_bias: bias must be \[heads, 2 \* kh - 1, 2 \* kw - 1\], got \[5, 9\]"):
        neighborhood_bias(table[0], 7, 12)
    with pytest.raises(ValueError, match="a map of 4x3 is smaller than kernel size x dilation, 3x5"):
        neighborhood_bias(table, 4, 3)


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "kernel", "dilation"), CASES)
@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_given_weights_equal_the_loop(batch, height, width, heads, dim, kernel, dilation, border, backend) -> None:
    """Of any sum and sign, which no softmax gives."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(batch, height, width, heads, kernel[0] * kernel[1], generator=generator, dtype=torch.float64)
    v = torch.randn(batch, height, width, heads, dim, generator=generator, dtype=torch.float64)
    want = torch.zeros_like(v)
    for row in range(height):
        for col in range(width):
            rows = keys_of(row, height, kernel[0], dilation[0], border)
            cols = keys_of(col, width, kernel[1], dilation[1], border)
            for number, (r, c) in enumerate((r, c) for r in rows for c in cols):
                if r is not None and c is not None:
                    want[:, row, col] += weights[:, row, col, :, number, None] * v[:, r, c]
    got = neighborhood_aggregate(weights, v, kernel, dilation, border=border, backend=backend)
    assert (got - want).abs().max() <= 1e-14 * want.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "kernel", "dilation"),
    [
        (14, 14, (13, 13), (1, 1)),  # one tile
        (7, 7, (7, 7), (1, 1)),  # every window is the map
        (23, 17, (5, 5), (1, 1)),  # tiles do not divide the map
        (33, 21, (13, 13), (1, 1)),  # one query in the last tile
        (19, 31, (3, 7), (3, 1)),
        (1, 40, (1, 9), (1, 1)),
    ],
)
@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("cache", [fast.CACHE, 1 << 15])
def test_spread_weights_equal_the_definition(height, width, kernel, dilation, border, cache, monkeypatch) -> None:
    monkeypatch.setattr(fast, "CACHE", cache)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, height, width, 2, kernel[0] * kernel[1], generator=generator, dtype=torch.float64).softmax(-1)
    v = 1 + torch.randn(2, height, width, 2, 8, generator=generator, dtype=torch.float64)
    check_accuracy(lambda *given, backend: neighborhood_aggregate(*given, kernel, dilation, border=border, backend=backend), [weights, v])


@pytest.mark.parametrize("border", ["shift", "mask"])
def test_gradients_of_given_weights(border: str) -> None:
    weights, v = (torch.randn(1, 11, 2, 1, size, dtype=torch.float64).requires_grad_() for size in (3, 2))

    def run(*given: torch.Tensor) -> torch.Tensor:
        return neighborhood_aggregate(*given, (3, 1), border=border, backend="torch")

    assert torch.autograd.gradcheck(run, [weights, v])
    assert torch.autograd.gradgradcheck(run, [weights, v])


def test_given_weights_are_recorded_and_views_are_taken() -> None:
    weights, v = torch.randn(2, 2, 9, 7, 25), torch.randn(2, 9, 7, 2, 2, 4)[..., 1, :, :]
    given = weights.permute(0, 2, 3, 1, 4)
    with record_attention() as records:
        out = neighborhood_aggregate(given, v, 5)
    assert records[0].op == "neighborhood_aggregate" and torch.equal(records[0].weights, weights)
    assert records[0].geometry == {"size": (9, 7), "kernel_size": (5, 5), "dilation": (1, 1), "border": "shift"}
    assert torch.allclose(neighborhood_aggregate(given, v, 5), out, atol=1e-5)
    assert neighborhood_aggregate(given.to("meta"), v.to("meta"), 5).shape == v.shape
    with pytest.raises(RuntimeError, match="neighborhood_aggregate: backend 'triton' cannot run"):
        neighborhood_aggregate(given, v, 5, backend="triton")


@pytest.mark.slow
def test_given_weights_compile_and_export_with_any_batch() -> None:
    weights, v = torch.randn(2, 9, 12, 2, 25), torch.randn(2, 9, 12, 2, 4)
    check_traced(lambda *given, backend: neighborhood_aggregate(*given, 5, backend=backend), [weights, v], (0, 1))


MAPS = [  # batch, height, width, heads, dim, kernel, dilation
    (2, 14, 14, 2, 32, (7, 7), (1, 1)),  # one tile
    (2, 28, 28, 2, 32, (7, 7), (1, 1)),
    (1, 28, 28, 1, 24, (7, 7), (4, 4)),  # a residue class is one tile
    (2, 23, 17, 2, 24, (5, 5), (1, 1)),  # tiles do not divide the map
    (1, 57, 31, 1, 8, (3, 7), (3, 1)),  # nor does the dilation
    (1, 33, 21, 2, 8, (13, 13), (1, 1)),  # one query in the last tile
    (1, 1, 40, 2, 16, (1, 9), (1, 1)),
]


def outputs(tensors, backend: str | None, kernel, dilation, border: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, output without gradients, gradients of q, k, v and bias."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]

    def run() -> torch.Tensor:
        return neighborhood_attention(*leaves[:3], kernel, dilation, bias=leaves[3], border=border, backend=backend)

    out = run()
    with torch.no_grad():
        alone = run()
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape)
    return [out.detach(), alone, *torch.autograd.grad(out, leaves, grad.to(dtype))]


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "kernel", "dilation"), MAPS)
@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("cache", [fast.CACHE, 1 << 15])  # bytes; the second does one image and few tiles at a time
def test_tiles_equal_the_definition(batch, height, width, heads, dim, kernel, dilation, border, cache, monkeypatch) -> None:
    monkeypatch.setattr(fast, "CACHE", cache)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, *, backend: str) -> torch.Tensor:
        return neighborhood_attention(q, k, v, kernel, dilation, bias=bias, border=border, backend=backend)

    check_accuracy(call, inputs(batch, height, width, heads, dim, kernel, torch.float64))


@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11, 13])
def test_every_size_of_a_map(border: str, kernel: int) -> None:
    worst = 0.0
    for size in range(kernel if border == "shift" else 1, 50, 3):
        tensors = inputs(1, 2, size, 1, 2, (1, kernel), torch.float64)
        got, exact = (neighborhood_attention(*tensors[:3], (1, kernel), bias=tensors[3], border=border, backend=name) for name in BACKENDS)
        worst = max(worst, float((got - exact).abs().max()))
    assert worst < 1e-13


@pytest.mark.parametrize("border", ["shift", "mask"])
def test_gradient_of_tiles_in_float64(border: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 11, 2, 1, 1, (3, 1), torch.float64)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention(*given[:3], (3, 1), bias=given[3], border=border, backend="torch")

    assert fast.cut(11, 3, 1, border).tiles > 1
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_two_runs_give_the_same_bits() -> None:
    tensors = inputs(4, 28, 28, 2, 16, (7, 7), torch.float32)
    first, second = (outputs(tensors, None, (7, 7), (1, 1), "shift", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, 130).view(2, 13, 5))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention(*qkv.unbind(3), (7, 3), (1, 2), bias=self.bias)


def test_compiles_into_one_graph() -> None:
    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # as inductor sees it, without a C++ compiler
    for size in ((2, 20, 17), (3, 20, 17), (3, 23, 17)):
        qkv = torch.randn(*size, 3, 2, 8, requires_grad=True)
        results = []
        for run in (model, compiled):
            out = run(qkv)
            results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, model.bias))])
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_any_batch(strict: bool) -> None:
    model = Model()
    exported = torch.export.export(
        model, (torch.randn(2, 20, 17, 3, 2, 8),), dynamic_shapes={"qkv": {0: torch.export.Dim("batch")}}, strict=strict
    )
    qkv = torch.randn(5, 20, 17, 3, 2, 8)
    assert torch.allclose(exported.module()(qkv), model(qkv), atol=1e-6)


def test_under_autocast() -> None:
    q, k, v, bias = inputs(1, 16, 20, 2, 16, (5, 5), torch.float32)
    q, k, v, bias = q.bfloat16(), k.bfloat16(), v.bfloat16(), bias.bfloat16().float().requires_grad_()
    exact = neighborhood_attention(q.double(), k.double(), v.double(), 5, bias=bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        got = neighborhood_attention(q, k, v, 5, bias=bias)
    assert got.dtype == torch.bfloat16
    assert relative(got.detach(), exact.detach()) < 1e-2
    factors = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    grads = [torch.autograd.grad((out * factors).sum(), bias)[0] for out in (got, exact)]
    assert relative(grads[0], grads[1].double()) < 1e-2


@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_in_float64(border: str, backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, 6, 3, 1, 2, (3, 3), torch.float64)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention(*given[:3], 3, (2, 1), bias=given[3], border=border, backend=backend)

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_views_of_one_projection_and_no_data(backend: str, dilation: int) -> None:
    qkv = torch.randn(2, 18, 9, 3, 2, 16)
    q, k, v = qkv.unbind(3)
    got = neighborhood_attention(q, k, v, 3, dilation, backend=backend)
    assert torch.equal(got, neighborhood_attention(q.contiguous(), k.contiguous(), v.contiguous(), 3, dilation, backend=backend))
    turned = neighborhood_attention(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), 3, dilation, backend=backend)
    assert torch.allclose(got, turned, atol=1e-6)
    q, k, v = qkv.to("meta").requires_grad_().unbind(3)
    empty = neighborhood_attention(q, k, v, 3, dilation, bias=torch.empty(2, 5, 5, device="meta", requires_grad=True), backend=backend)
    assert empty.shape == got.shape
    empty.sum().backward()
    assert neighborhood_attention(*qkv[:0].unbind(3), 3, dilation, backend=backend).shape == (0, 18, 9, 2, 16)


def test_what_does_not_fit_is_named() -> None:
    q, k, v, bias = inputs(1, 8, 9, 2, 4, (3, 3), torch.float32)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        neighborhood_attention(q, k, v, 4)
    with pytest.raises(ValueError, match="8x9 is smaller than kernel size x dilation, 9x9; pad it first"):
        neighborhood_attention(q, k, v, 3, 3)
    with pytest.raises(ValueError, match="dilation must be at least 1"):
        neighborhood_attention(q, k, v, 3, 0)
    with pytest.raises(ValueError, match=r"bias must be .* \[2, 5, 9\], got \[2, 5, 5\]"):
        neighborhood_attention(q, k, v, (3, 5), bias=bias)
    with pytest.raises(ValueError, match="q, k and v must have one shape"):
        neighborhood_attention(q, k[:, :, 1:], v, 3)
    with pytest.raises(ValueError, match="weights must be"):
        neighborhood_aggregate(neighborhood_scores(q, k, 3), v[:, :, 1:], 3)
    with pytest.raises(ValueError, match="border"):
        neighborhood_attention(q, k, v, 3, border="wrap")
    with pytest.raises(ValueError, match=r"\[B, H, W, heads, dim\]"):
        neighborhood_attention(q[0], k[0], v[0], 3)

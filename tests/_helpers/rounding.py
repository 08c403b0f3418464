"""How far float32 may be from the exact number: by the mathematics, and by PyTorch's own operations on this machine.

No bound is a constant that some machine met. PyTorch's convolutions round differently by CPU (oneDNN has other kernels
for AVX2, AVX-512 and AMX) and by memory format, so theirs are measured in the test that needs them. Winograd's error
follows from its algorithm, run in float64 with noise of the size of every rounding in it.
"""

from __future__ import annotations

import torch
from references import relative_distance
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

EPS = torch.finfo(torch.float32).eps
TWICE = 2  # other orders of the same sums, other noise of the same size; a mean over so many elements hardly varies
FEW = 4 * EPS  # roundings of the result itself: of the bias, of the norm, of what is exact in one of the two
FORMATS = (torch.contiguous_format, torch.channels_last)

# F(3, 3) at the points 0, 1, -1/2, -2 and infinity: a row of three at each, and what products add to three pixels.
_POWERS = torch.tensor([[1, 0, 0], [1, 1, 1], [1, -1 / 2, 1 / 4], [1, -2, 4], [0, 0, 1]], dtype=torch.float64)
_G = _POWERS * torch.tensor([1, 2 / 9, 8 / 9, 2 / 9, 1], dtype=torch.float64)[:, None]
_A = _POWERS * torch.tensor([1, 1, 1, 1 / 4, 1], dtype=torch.float64)[:, None]


def _b() -> Tensor:
    """The input transform: what makes ``sum_k A[k, i] G[k, j] B[k, l]`` 1 where ``l = i + j``, else 0."""
    bilinear = torch.einsum("ki,kj->ijk", _A, _G).flatten(0, 1)
    wanted = torch.stack([torch.eye(5, dtype=torch.float64)[i + j] for i in range(3) for j in range(3)])
    found = torch.linalg.lstsq(bilinear, wanted).solution
    assert (bilinear @ found - wanted).abs().max() < 1e-13
    return found


def _as_convolution(weight: Tensor, padding: tuple[int, int], input_gradient: bool) -> tuple[Tensor, tuple[int, int]]:
    """An input gradient of stride 1 is the convolution with the mirrored kernel."""
    if not input_gradient:
        return weight, padding
    return weight.flip(2, 3).transpose(0, 1), (2 - padding[0], 2 - padding[1])


def _tiles(x: Tensor, size: list[int], padding: tuple[int, int]) -> Tensor:
    """``(N, C, rows, columns, 5, 5)``, three pixels apart."""
    missing = [
        -(-length // 3) * 3 + 2 - pad - side for length, pad, side in zip(size, padding, x.shape[2:], strict=True)
    ]
    return F.pad(x, (padding[1], missing[1], padding[0], missing[0])).unfold(2, 5, 3).unfold(3, 5, 3)


def winograd_error(x: Tensor, weight: Tensor, padding: tuple[int, int], input_gradient: bool = False) -> float:
    """Relative error of F(3x3, 3x3) in float32, in the root mean square, where every rounding is as large as it can be.

    ``Y = A'[(G g G') * (B' d B)]A`` runs in float64 with noise of random sign in each of its steps: of transformed
    weights, which are rounded once; of the transforms, two passes of at most four sums, each as large as the root of
    the sum of its terms' squares (images and weights of the tests have independent signs); and of the products, whose
    error is that of `torch.bmm` in float32 on this machine at the same values.
    """
    b, rounding = _b(), EPS / 2
    kernel, padding = _as_convolution(weight.detach().double(), padding, input_gradient)
    size = [side + 2 * pad - 2 for side, pad in zip(x.shape[2:], padding, strict=True)]
    d = _tiles(x.detach().double(), size, padding)
    u = torch.einsum("ai,kcij,bj->abck", _G, kernel, _G).flatten(0, 1)
    v = torch.einsum("ai,ncrsij,bj->abnrsc", b, d, b)
    v_size = torch.einsum("ai,ncrsij,bj->abnrsc", b.square(), d.square(), b.square()).sqrt()
    counts, v, v_size = v.shape[2:5], v.flatten(2, 4).flatten(0, 1), v_size.flatten(2, 4).flatten(0, 1)

    def output(products: Tensor, a: Tensor = _A) -> Tensor:
        tiles = products.unflatten(1, counts).unflatten(0, (5, 5))
        y = torch.einsum("ai,abnrsk,bj->nkrisj", a, tiles, a)
        return y.flatten(4, 5).flatten(2, 3)[:, :, : size[0], : size[1]]

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    generator = torch.Generator().manual_seed(0)
    exact = torch.bmm(v, u)
    y = output(exact)
    single = v.float(), u.float()
    of_products = (torch.bmm(*single).double() - torch.bmm(*(part.double() for part in single))).square()
    passes = (2 * 4) ** 0.5 * rounding
    found = torch.bmm(v + passes * v_size * noise(v), u * (1 + rounding * noise(u)))
    found += of_products.mean((1, 2), keepdim=True).sqrt() * noise(exact)
    found = output(found) + passes * output(exact.square(), _A.square()).sqrt() * noise(y)
    return relative_distance(found, y)


def winograd(x: Tensor, weight: Tensor, padding: tuple[int, int], input_gradient: bool = False) -> Tensor:
    """The algorithm without noise, in float64."""
    kernel, padding = _as_convolution(weight.detach().double(), padding, input_gradient)
    size = [side + 2 * pad - 2 for side, pad in zip(x.shape[2:], padding, strict=True)]
    b = _b()
    d = _tiles(x.detach().double(), size, padding)
    products = torch.einsum("ax,kcxy,by,ai,ncrsij,bj->abnrsk", _G, kernel, _G, b, d, b)
    y = torch.einsum("ai,abnrsk,bj->nkrisj", _A, products, _A).flatten(4, 5).flatten(2, 3)
    return y[:, :, : size[0], : size[1]]


def direct(
    x: Tensor, weight: Tensor, padding: tuple[int, int], input_gradient: bool = False, stride: int = 1
) -> Tensor:
    """PyTorch's own convolution without bias, or its input gradient, of the smallest input that has such a result."""
    if not input_gradient:
        return F.conv2d(x, weight, stride=stride, padding=padding)
    lengths = zip(x.shape[2:], weight.shape[2:], padding, strict=True)
    size = [stride * (length - 1) + side - 2 * pad for length, side, pad in lengths]
    return conv2d_input((len(x), weight.shape[1], *size), weight, x, stride, padding)


def direct_error(
    x: Tensor, weight: Tensor, padding: tuple[int, int], input_gradient: bool = False, stride: int = 1
) -> float:
    """Relative error of PyTorch's own in float32 on this machine, in the memory format where it is larger."""
    exact = direct(x.detach().double(), weight.detach().double(), padding, input_gradient, stride)
    both = ([part.detach().float().contiguous(memory_format=memory) for part in (x, weight)] for memory in FORMATS)
    return max(relative_distance(direct(*given, padding, input_gradient, stride), exact) for given in both)


def times(x: Tensor, weight: Tensor, padding: tuple[int, int], stride: int = 1) -> float:
    """How many times PyTorch's own error the one of a fast convolution and its derivatives may be.

    Twice where it is PyTorch's own in another order. Winograd's is as many times that as its derived error is of the
    one that PyTorch has here, by result or by input gradient, whichever is more: errors go on in proportion.
    """
    if stride != 1:
        return TWICE
    y = direct(x, weight, padding)
    both = ((x, weight, padding), (y, weight, padding, True))
    return TWICE * max(1, *(winograd_error(*given) / direct_error(*given) for given in both))

"""Fast convolutions against nn.Conv2d: every derivative, when they are taken, and what they must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from references import relative_distance
from rounding import FEW, FORMATS, direct_error, times
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from lpips_lightning.engine.windows import window_of
from lpips_lightning.kernels import conv2d, winograd
from lpips_lightning.kernels.conv2d import FastConv2d, replace_convolutions
from lpips_lightning.kernels.winograd import transform_weight

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # torch 2.15, of tracing and in its own forward mode
STEPS = ((11, 4, 2), (3, 2, 0), (3, 2, 1), (7, 2, 3), (7, 3, 0))  # kernel, stride, padding
SIZES = {(23, 26): True, (17, 40): False}  # of images, and whether there is a bias
WINOGRAD = [((128, 136, 3, 1, pads, bias), size) for pads in (0, 1, (0, 1)) for size, bias in SIZES.items()]
FIRST = [((3, 8, *step, size != (33, 33)), size) for step in STEPS for size in ((32, 47), (33, 33), (34, 21))]
CASES = [*WINOGRAD, *FIRST, ((1, 5, 2, 3, 0), (19, 20)), ((4, 6, 3, 2, (0, 1)), (12, 12))]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Paddings and forms that Winograd's arithmetic was called with; on a CPU where it is fast."""
    seen, convolve = [], winograd.convolve

    monkeypatch.setattr(
        winograd, "convolve", lambda *given, **form: [convolve(*given, **form), seen.append((given[3], form))][0]
    )
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    return seen


def made(channels=128, filters=128, kernel=3, stride=1, padding=1, bias=True):
    """The same frozen weights in three convolutions: fast, PyTorch's, and PyTorch's in float64."""
    plain = nn.Conv2d(channels, filters, kernel, stride, padding, bias=bias).requires_grad_(False)
    return FastConv2d(copy.deepcopy(plain)), plain, copy.deepcopy(plain).double()


def images(module, size=(24, 26), count=2):
    return torch.randn(count, module.in_channels, *size)


def limit(plain, x, padding=None):
    """Relative error of a fast convolution, or of its input gradient: `times` the larger of PyTorch's own two."""
    padding, stride = padding or plain.padding, plain.stride[0]
    y = F.conv2d(x, plain.weight, stride=plain.stride, padding=padding)
    both = ((x, plain.weight, padding), (y, plain.weight, padding, True))
    own = max(direct_error(*given, stride=stride) for given in both)
    return times(x, plain.weight, padding, stride) * own + FEW


def in_formats(plain, *tensors):
    """PyTorch's own module, and what it is called with, in each memory format."""
    for memory in FORMATS:
        yield copy.deepcopy(plain).to(memory_format=memory), *(x.contiguous(memory_format=memory) for x in tensors)


def bent(module):
    """A function of images whose derivatives of every order depend on them."""
    return lambda x: module(x).tanh().square().sum()


def derivatives(module, x, along):
    """Value, gradient, its derivative along a direction, and the gradient of that one's norm."""
    x = x.clone().requires_grad_()
    gradient = torch.autograd.grad(bent(module)(x), x, create_graph=True)[0]
    second = torch.autograd.grad((gradient * along).sum(), x, create_graph=True)[0]
    return module(x), gradient, second, torch.autograd.grad(second.square().sum(), x)[0]


@pytest.mark.parametrize(("options", "size"), CASES)
def test_values_and_three_derivatives_are_those_of_pytorch_in_float64(calls, options, size):
    fast, plain, exact = made(*options)
    x = images(fast, size)
    found, right = derivatives(fast, x, x.flip(0)), derivatives(exact, x.double(), x.flip(0).double())
    own = [derivatives(*given) for given in in_formats(plain, x, x.flip(0))]
    most = times(x, plain.weight, plain.padding, plain.stride[0])
    for value, exactly, *theirs in zip(found, right, *own, strict=True):
        assert (
            relative_distance(value, exactly) < most * max(relative_distance(other, exactly) for other in theirs) + FEW
        )
    assert torch.equal(found[1] == 0, right[1] == 0)  # of pixels that no window sees
    assert (right[1] == 0).any() or options[2:5] != (7, 3, 0)
    assert found[0].grad_fn.name() != right[0].grad_fn.name()
    assert {form["input_gradient"] for _, form in calls} == ({True, False} if options[3] == 1 else set())


def bf16(module, x, padding, *_):
    """Partial sums in bfloat16."""
    parts = zip(x.split(32, 1), module.weight.split(32, 1), strict=True)
    sums = sum(F.conv2d(part, weight, stride=module.stride, padding=padding).bfloat16() for part, weight in parts)
    return sums.float() + (0 if module.bias is None else module.bias.view(1, -1, 1, 1))


MUTATIONS = {
    "partial sums in bfloat16": bf16,
    "no bias": lambda module, x, padding, *_: F.conv2d(x, module.weight, None, module.stride, padding),
    "a weight off by 1e-4": lambda module, x, padding, *_: F.conv2d(
        x, module.weight * (1 + 1e-4), module.bias, module.stride, padding
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize(("options", "size"), [WINOGRAD[2], FIRST[0]])
def test_these_bounds_reject_arithmetic_that_is_wrong(monkeypatch, options, size, mutation):
    fast, plain, exact = made(*options)
    x = images(fast, size)
    right, allowed = exact(x.double()), limit(plain, x)
    assert relative_distance(fast(x), right) < allowed
    monkeypatch.setattr(FastConv2d, "run", MUTATIONS[mutation])
    assert relative_distance(fast(x), right) > 3 * allowed


@pytest.mark.parametrize(("options", "size"), [WINOGRAD[2], WINOGRAD[5], FIRST[0], FIRST[5]])
def test_forward_mode_and_batches_of_batches(calls, options, size):
    fast, plain, exact = made(*options)
    x, along = images(fast, size, 4), images(fast, size, 4)

    def every(module, x, along):
        stack = torch.stack([x, along])
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x, along))).tangent
        return {
            "forward": dual,
            "jvp": jvp(module, (x,), (along,))[1],
            "jvp of a number": jvp(bent(module), (x,), (along,))[1],
            "forward over reverse": jvp(grad(bent(module)), (x,), (along,))[1],
            "vmap": vmap(module)(stack),
            "vmap of another dimension": vmap(module, in_dims=2, out_dims=1)(stack.movedim(0, 2)),
            "vmap of vmap": vmap(vmap(module))(stack[:, :, None]),
            "vmap of images": vmap(module)(x),
            "gradients of samples": vmap(grad(lambda image: bent(module)(image[None])))(x),
            "vmap of jvp": vmap(lambda x, t: jvp(module, (x[None],), (t[None],))[1])(x, along),
        }

    right, own = every(exact, x.double(), along.double()), [every(*given) for given in in_formats(plain, x, along)]
    most = times(x, plain.weight, plain.padding, plain.stride[0])
    # A number's parts cancel each other: its error is that of the gradient that is multiplied and summed.
    slope, *slopes = (grad(bent(m))(z) for m, z in ((exact, x.double()), *in_formats(plain, x)))
    cancelled = float(slope.norm() * along.norm()) / abs(float(right["jvp of a number"]))
    for name, value in every(fast, x, along).items():
        theirs = max(relative_distance(other[name], right[name]) for other in own)
        if name == "jvp of a number":
            theirs = cancelled * max(relative_distance(other, slope) for other in slopes)
        assert relative_distance(value, right[name]) < most * theirs + FEW, name
    assert bool(calls) == (options[3] == 1)


@pytest.mark.parametrize(("options", "size"), [*WINOGRAD[1:5], *FIRST[:4], ((8, 8), (9, 9)), ((8, 8, 3, 2), (12, 9))])
def test_the_input_gradient_without_a_graph(options, size):
    fast, plain, exact = made(*options)
    x = images(fast, size)
    y, leaf = torch.randn_like(fast(x)), x.double().requires_grad_()
    (right,) = torch.autograd.grad(exact(leaf), leaf, y.double())
    assert relative_distance(fast.input_gradient(y, x.shape), right) < limit(plain, x)
    assert fast.input_gradient(y[:0], x[:0].shape).shape == x[:0].shape


CHOICES = [
    ("DEFAULT", 256, True, 0),
    ("AVX2", 64, True, 0),
    ("AVX2", 256, True, 1),
    ("AVX2", 256, False, 0),
    ("AVX512", 512, True, 0),
]


@pytest.mark.parametrize(("name", "channels", "mkl", "taken"), CHOICES)
def test_the_processor_and_the_size_of_an_image_choose_not_the_batch(monkeypatch, calls, name, channels, mkl, taken):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    fast, plain, exact = made(channels, channels)
    chosen = []
    for x in (images(fast, (side, side + 1), count) for side in (3, 12) for count in (1, 3)):
        calls.clear()
        assert relative_distance(fast(x), exact(x.double())) < limit(plain, x)
        chosen.append(len(calls))
    assert chosen[::2] == chosen[1::2] and set(chosen) == {0, taken}


LAYERS = [
    # channels, filters and side of the kernel, size, and whether it pays
    ((128, 128, 3), (24, 26), True),
    ((512, 512, 3), (32, 32), True),
    ((256, 256, 3), (7, 7), False),  # few pixels
    ((256, 256, 3), (4, 601), False),  # tiles hang over the end
    ((64, 192, 3), (63, 63), False),
    ((64, 192, 5), (27, 27), False),
]


@pytest.mark.parametrize(("options", "size", "pays"), LAYERS)
def test_size_and_channels_choose_winograd_and_a_kernel_is_kept_where_it_pays_alone(monkeypatch, options, size, pays):
    channels, filters, side = options
    fast, _, _ = made(channels, filters, side, padding=side // 2)
    seen = []
    monkeypatch.setattr(winograd, "transform_weight", lambda weight: [transform_weight(weight), seen.append(weight)][0])
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        y = fast(x := images(fast, size))
        fast.input_gradient(y, x.shape)
        assert len(seen) == (pays and capability == "AVX2")


PYTORCHS_OWN = {
    "trained weight": lambda module, x: (module.weight.requires_grad_(), module(x))[1],
    "trained bias": lambda module, x: (module.bias.requires_grad_(), module(x))[1],
    "float64": lambda module, x: module.double()(x.double()),
    "bfloat16": lambda module, x: module.bfloat16()(x.bfloat16()),
    "autocast": torch.autocast("cpu", torch.bfloat16)(lambda module, x: module(x)),
    "compiled": lambda module, x: torch.compile(module, fullgraph=True, backend="eager")(x),
    "traced": lambda module, x: torch.jit.trace(module, (x,), check_trace=False)(x),
    "one image": lambda module, x: module(x[0]),
}


@pytest.mark.parametrize("options", [(), (3, 8, 3, 2, 1)])
@pytest.mark.parametrize("way", PYTORCHS_OWN)
def test_it_is_pytorchs_own_where_nothing_is_known_to_be_faster(calls, way, options):
    fast, plain, _ = made(*options)
    x, z = (given.clone().requires_grad_() for given in [images(fast)] * 2)
    found, right = PYTORCHS_OWN[way](fast, x), PYTORCHS_OWN[way](plain, z)
    assert not calls and torch.equal(found, right) and found.grad_fn.name() == right.grad_fn.name()
    found.square().sum().backward()
    right.square().sum().backward()
    for a, b in zip((x, *fast.parameters()), (z, *plain.parameters()), strict=True):
        assert a.grad is b.grad if b.grad is None else torch.equal(a.grad, b.grad)


WRITES = {
    "load_state_dict": lambda module, new: module.load_state_dict(new),
    "in place": lambda module, _: module.weight.mul_(-2),
    "in inference mode": torch.inference_mode(lambda module, _: module.weight.mul_(-2)),
    "assigned": lambda module, new: module.load_state_dict(new, assign=True),
    "rounded": lambda module, _: module.bfloat16().float(),
}


@pytest.mark.parametrize("way", WRITES)
def test_new_weights_are_seen_and_no_gradient_mixes_them_with_old_ones(way):
    fast, plain, exact = made()
    new = {name: torch.randn_like(tensor) for name, tensor in plain.state_dict().items()}
    fast.load_state_dict({name: tensor.clone() for name, tensor in plain.state_dict().items()}, assign=True)
    y = fast.requires_grad_(False)(x := images(fast).requires_grad_())
    with torch.no_grad():
        WRITES[way](fast, new)
    plain.load_state_dict(fast.state_dict())
    exact.load_state_dict(fast.state_dict())
    assert relative_distance(fast.requires_grad_(False)(x), exact(x.double())) < limit(plain, x.detach())
    with pytest.raises(RuntimeError, match="modified"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("options", [(), (3, 8, 3, 2, 1)])
def test_weights_may_be_arguments(options, name):
    fast, plain, exact = made(*options)
    weights, x = torch.randn(2, *getattr(fast, name).shape), images(fast)
    fast.weight = nn.Parameter(plain.weight.clone(), False)
    allowed, right = limit(plain, x), exact(x.double())
    assert relative_distance(fast(x), right) < allowed
    # What is no frozen parameter takes PyTorch's own; a bias is beside a result of the same size.
    both = ((fast, x), (exact, x.double()))
    of_fast, of_exact = (lambda w, given=given: functional_call(given[0], {name: w}, given[1:]) for given in both)
    assert relative_distance(of_fast(weights[0]), of_exact(weights[0].double())) < allowed
    tangents = (jvp(of, (w[0],), (w[1],))[1] for of, w in ((of_fast, weights), (of_exact, weights.double())))
    assert relative_distance(*tangents) < allowed
    assert relative_distance(vmap(of_fast)(weights), vmap(of_exact)(weights.double())) < allowed
    assert relative_distance(fast(x), right) < allowed


HOOKS = ("forward", "forward_pre", "full_backward", "full_backward_pre")
LEFT_ALONE = {
    "groups": nn.Conv2d(4, 4, 3, groups=2),
    "dilation": nn.Conv2d(4, 4, 3, dilation=(1, 2)),
    "padding by word": nn.Conv2d(4, 4, 3, padding="same"),
    "other padding": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "subclass": type("Other", (nn.Conv2d,), {})(4, 4, 3),
    "parametrized": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "fast": FastConv2d(nn.Conv2d(4, 4, 3)),
    **{hook: nn.Conv2d(4, 4, 3) for hook in HOOKS},
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_is_not_plain_is_left_alone(kind):
    module = nn.Sequential(LEFT_ALONE[kind], nn.Conv2d(4, 4, 3))
    if kind in HOOKS:
        getattr(module[0], f"register_{kind}_hook")(print)
    replace_convolutions(module)
    assert module[0] is LEFT_ALONE[kind] and type(module[1]) is FastConv2d


def test_replacing_convolutions_changes_neither_names_nor_weights_nor_modes_nor_random_numbers():
    shared = nn.Conv2d(4, 4, 3, bias=False).eval()
    module = nn.Sequential(nn.Conv2d(3, 4, (3, 5), (2, 1), (1, 0)), nn.ModuleList([shared, nn.ReLU()]), shared)
    before, state, modes = module.state_dict(), torch.get_rng_state(), [part.training for part in module.modules()]
    replace_convolutions(module)
    assert type(module[0]) is type(module[2]) is FastConv2d and module[1][0] is module[2]
    assert list(module.state_dict()) == list(before) == ["0.weight", "0.bias", "1.0.weight", "2.weight"]
    assert all(tensor.data_ptr() == before[name].data_ptr() for name, tensor in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert (module[0].kernel_size, module[0].stride, module[0].padding) == ((3, 5), (2, 1), (1, 0))


@pytest.mark.parametrize("options", [(128, 128, 3, 1, 0), (3, 8, 3, 2, 0)])
def test_inference_mode_empty_batches_and_images_that_do_not_fit(options):
    fast, plain, exact = made(*options)
    x = images(fast)
    allowed, right = limit(plain, x), exact(x.double())
    with torch.inference_mode():
        inside, own = x * 1, FastConv2d(copy.deepcopy(plain))
        assert relative_distance(fast(inside), right) < allowed
    assert all(relative_distance(module(image), right) < allowed for module in (fast, own) for image in (inside, x))
    assert torch.autograd.grad(fast(x.requires_grad_()).sum(), x)[0].count_nonzero() > 0
    assert fast(x[:0]).shape == plain(x[:0]).shape
    for bad, reason in ((x[..., :2], "Kernel size can't be greater"), (x[:, 1:], "to have .* channels, but got")):
        with pytest.raises(RuntimeError, match=reason):
            fast(bad)


def test_rows_of_an_image_are_fast_too(calls):
    fast, plain, exact = made()
    found = window_of(fast).run_rows(rows := images(fast), 0, 24)
    right = F.conv2d(rows.double(), exact.weight, exact.bias, padding=(0, 1))
    assert relative_distance(found, right) < limit(plain, rows, (0, 1))
    assert calls == [((0, 1), {"input_gradient": False})]


def test_without_derivatives_it_runs_without_an_autograd_function(calls, monkeypatch):
    module, *_ = made()
    x = images(module, count=1)
    expected = module(x.requires_grad_()).detach()
    monkeypatch.setattr(conv2d._LinearMap, "apply", None)
    before = len(calls)
    assert torch.equal(module(x.detach()), expected)
    with torch.no_grad():
        assert torch.equal(module(x), expected)
    assert len(calls) == before + 2

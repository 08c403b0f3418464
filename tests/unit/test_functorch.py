"""torch.func over loss, network and compat, as over plain PyTorch code: against loops, torch.autograd and `lpips`."""

from __future__ import annotations

import gc
import pickle

import pytest
import torch
from references import peer_lpips, relative_distance
from torch.autograd import forward_ad
from torch.autograd import functional as numeric
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from lpips_lightning import LPIPS, PerceptualLoss, compat
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.functional.lpips import _cached, learned_perceptual_image_patch_similarity
from lpips_lightning.images.ranges import RangeError

# Of torch itself, inside torch.func and gradcheck:
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:FutureWarning", "ignore:Please use `torch.vmap:FutureWarning"
)
SIDE = 33
X, Y = torch.rand(2, 2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(SIDE, SIDE).tril()
LOSS, NET, COMPAT = PerceptualLoss("embedded", data_range=1.0), LPIPS("embedded"), compat.LPIPS(net="embedded")
ONE, SCALE = torch.ones((), dtype=torch.float64), torch.tensor([0.9, 0.1], dtype=torch.float64)


def squares(terms):
    return sum(term.square().sum() for term in terms.values())


CALLS = {  # two batches -> one number
    "loss": LOSS,
    "network": lambda x, y: NET(x, y, 1.0).sum(),
    "compat": lambda x, y: COMPAT(x, y, normalize=True).sum(),
    "function": lambda x, y: learned_perceptual_image_patch_similarity(x, y, NET, "sum", normalize=True),
    "maps": lambda x, y: NET(x, y, 1.0, spatial=True).square().sum(),
    "layers": lambda x, y: squares(NET(x, y, 1.0, per_layer=True)),
    "mask": lambda x, y: LOSS(x, y, mask=MASK.expand(len(x), -1, -1)),
    "eroded mask": lambda x, y: LOSS(x, y, mask=torch.ones(len(x), SIDE, SIDE), erode=True),
    "videos": lambda x, y: LOSS(x[None], y[None]),
}


def gradient(call, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(call(x), x)[0]


def hessian_by_autograd(call, s):
    s = s.clone().requires_grad_()
    (first,) = torch.autograd.grad(call(s), s, create_graph=True)
    return torch.stack([torch.autograd.grad(part, s, retain_graph=True)[0] for part in first])


def scaled(call):
    """A function of two numbers, which has a small Hessian."""
    return lambda s: call(X * s[0] + s[1], Y)


def single(call):
    return lambda x, y: call(x[None], y[None])


def each(call, x=X, y=Y):
    """Gradients of single pairs, one after the other."""
    return torch.stack([gradient(lambda a, b=b: single(call)(a, b), a) for a, b in zip(x, y, strict=True)])


TRANSFORMS = {  # a call -> by torch.func, and by torch.autograd
    "vmap": (
        lambda call: vmap(single(call))(X, Y),
        lambda call: torch.stack([single(call)(x, y) for x, y in zip(X, Y, strict=True)]),
    ),
    "vmap of another dimension": (
        lambda call: vmap(lambda x: single(call)(x, Y[0]), in_dims=1)(X.movedim(0, 1)),
        lambda call: torch.stack([single(call)(x, Y[0]) for x in X]),
    ),
    "vmap of targets": (
        lambda call: vmap(lambda y: single(call)(X[0], y))(Y),
        lambda call: torch.stack([single(call)(X[0], y) for y in Y]),
    ),
    "gradients of samples": (lambda call: vmap(grad(single(call)))(X, Y), each),
    "gradients of targets": (
        lambda call: vmap(grad(single(call), argnums=1))(X, Y),
        lambda call: each(lambda y, x: call(x, y), Y, X),
    ),
    "grad of vmap": (lambda call: grad(lambda x: vmap(single(call))(x, Y).sum())(X), each),
    "vjp": (
        lambda call: vjp(lambda x: call(x, Y), X)[1](2 * ONE)[0],
        lambda call: 2 * gradient(lambda x: call(x, Y), X),
    ),
    "jvp": (
        lambda call: jvp(lambda x: call(x, Y), (X,), (Y,))[1],
        lambda call: (gradient(lambda x: call(x, Y), X) * Y).sum(),
    ),
    "jacrev": (lambda call: jacrev(lambda x: call(x, Y))(X), lambda call: gradient(lambda x: call(x, Y), X)),
    "jacfwd": (lambda call: jacfwd(scaled(call))(SCALE), lambda call: gradient(scaled(call), SCALE)),
    "hessian": (
        lambda call: hessian(scaled(call))(SCALE),
        lambda call: hessian_by_autograd(scaled(call), SCALE),
    ),
    "jacfwd of jacfwd": (
        lambda call: jacfwd(jacfwd(scaled(call)))(SCALE),
        lambda call: hessian_by_autograd(scaled(call), SCALE),
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CALLS)
def test_transforms_give_what_loops_and_autograd_give(name, transform):
    by_func, by_autograd = TRANSFORMS[transform]
    assert relative_distance(by_func(CALLS[name]), by_autograd(CALLS[name])) < 1e-10


def forward_mode(call):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(X, Y))).tangent


def batched(create_graph):
    x = X.clone().requires_grad_()
    weights = torch.tensor([1.0, 2.0], dtype=X.dtype)
    return torch.autograd.grad(LOSS(x, Y), x, weights, is_grads_batched=True, create_graph=create_graph)[0]


def right():
    return gradient(lambda x: LOSS(x, Y), X)


AUTOGRAD = {
    "jacobian": (lambda: numeric.jacobian(lambda x: LOSS(x, Y), X), right),
    "vectorized jacobian": (lambda: numeric.jacobian(lambda x: LOSS(x, Y), X, vectorize=True), right),
    "vjp": (lambda: numeric.vjp(lambda x: LOSS(x, Y), X)[1], right),
    "jvp": (lambda: numeric.jvp(lambda x: LOSS(x, Y), X, Y)[1], lambda: (right() * Y).sum()),
    "hessian": (
        lambda: numeric.hessian(scaled(LOSS), SCALE),
        lambda: hessian(scaled(LOSS))(SCALE),
    ),
    "gradients in a batch": (lambda: batched(False), lambda: torch.stack([right(), 2 * right()])),
    "in a batch, with a graph": (lambda: batched(True), lambda: torch.stack([right(), 2 * right()])),
    "forward mode": (lambda: forward_mode(lambda x: LOSS(x, Y)), lambda: (right() * Y).sum()),
    "forward mode of the target": (
        lambda: forward_mode(lambda x: LOSS(Y, x)),
        lambda: (right() * Y).sum(),
    ),
}


@pytest.mark.parametrize("name", AUTOGRAD)
def test_every_way_of_torch_autograd_gives_the_same(name):
    by_other, by_backward = AUTOGRAD[name]
    assert relative_distance(by_other(), by_backward()) < 1e-10


def test_forward_and_reverse_mode_and_batched_gradients_pass_gradcheck():
    x = X[:1].clone().requires_grad_()
    options = {"fast_mode": True, "check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(lambda x: LOSS(x, Y[:1]), x, **options)
    assert torch.autograd.gradgradcheck(lambda x: LOSS(x, Y[:1]), x, fast_mode=True)


@pytest.mark.parametrize("transform", ["vmap", "gradients of samples", "jacrev", "hessian"])
def test_float32_agrees_with_autograd(transform, monkeypatch):
    for name, value in {"X": X.float(), "Y": Y.float(), "ONE": ONE.float(), "SCALE": SCALE.float()}.items():
        monkeypatch.setitem(globals(), name, value)
    by_func, by_autograd = TRANSFORMS[transform]
    found = by_func(LOSS)
    assert found.dtype == torch.float32
    tolerance = 1e-3 if transform == "hessian" else 1e-5  # second derivatives of ReLU networks cancel
    assert relative_distance(found, by_autograd(LOSS)) < tolerance


def test_gradients_of_samples_by_parameters_with_functional_call():
    model = torch.nn.Conv2d(3, 3, 3, padding=1).double()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, x, y):
        return LOSS(functional_call(model, parameters, (x[None],)), y[None])

    found = vmap(grad(loss), (None, 0, 0))(parameters, X, Y)
    for index in range(len(X)):
        one = torch.autograd.grad(LOSS(model(X[index : index + 1]), Y[index : index + 1]), list(model.parameters()))
        for name, expected in zip(parameters, one, strict=True):
            assert relative_distance(found[name][index], expected) < 1e-10


@pytest.mark.parametrize("net", ["squeeze"])
def test_transforms_equal_lpips(backbones, net):
    peer, ours = peer_lpips(net, backbones[net]).double(), compat.LPIPS(net=net, weights=backbones[net])
    for transform in (
        lambda call: vmap(grad(single(call)))(X, Y),
        lambda call: jacrev(lambda x: call(x, Y))(X),
        lambda call: hessian(scaled(call))(SCALE),
    ):
        found, expected = (transform(lambda x, y, one=one: one(x, y, normalize=True).sum()) for one in (ours, peer))
        assert relative_distance(found, expected) < 1e-10


FIRST = {
    "gradient": lambda call, x, y: grad(lambda a: call(a, y))(x),
    "vmap": lambda call, x, y: vmap(single(call))(x, y),
    "jvp": lambda call, x, y: jvp(lambda a: call(a, y), (x,), (y,))[1],
    "compiled vmap": lambda call, x, y: torch.compile(
        lambda x, y: vmap(single(call))(x, y), backend="eager", fullgraph=True
    )(x, y),
}


@pytest.mark.parametrize(
    ("kind", "transform"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] * (name == "compiled vmap"))
        for kind in ("float64", "unpickled", "function")
        for name in FIRST
    ],
)
def test_a_network_that_is_first_needed_inside_a_transform_is_an_ordinary_one(kind, transform):
    written = pickle.dumps(PerceptualLoss("embedded", data_range=1.0, weights="random"))
    dtype = torch.float64 if kind == "float64" else torch.float32
    x, y = X.to(dtype), Y.to(dtype)
    gc.collect()
    if kind == "function":
        _cached.cache_clear()

    def call(x, y):
        return learned_perceptual_image_patch_similarity(x, y, "embedded", normalize=True)

    call = call if kind == "function" else pickle.loads(written)
    found = FIRST[transform](call, x, y)
    torch._dynamo.reset()
    assert relative_distance(found, FIRST[transform](call, x, y)) < 1e-6
    assert float(gradient(lambda x: call(x, y), x).norm()) > 0


def test_values_are_checked_under_vmap():
    with pytest.raises(RangeError, match="y: expected values on"):
        vmap(lambda x, y: NET(x[None], y[None], 1.0))(X, Y + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    beyond = X + 1
    expected = torch.stack(
        [gradient(lambda x, y=y: NET(x[None], y[None], 1.0), x) for x, y in zip(beyond, Y, strict=True)]
    )
    for transform in (
        vmap(grad(lambda x, y: NET(x[None], y[None], 1.0)[0])),
        grad(lambda x, y: vmap(lambda x, y: NET(x[None], y[None], 1.0)[0])(x, y).sum()),
    ):
        assert relative_distance(transform(beyond, Y), expected) < 1e-10  # a prediction: any values pass, unclamped


def test_metrics_refuse_vmap_and_name_a_way_out():
    metric = Metric("embedded", normalize=True)
    for call in (metric, metric.update):
        with pytest.raises(TypeError, match="update: expected whole batches.* map the function or the network instead"):
            vmap(lambda x, y, call=call: call(x[None], y[None]))(X, Y)
    metric.update(X, Y)
    expected = vmap(lambda x, y: metric.net(x[None], y[None], 1.0)[0])(X, Y).mean()
    assert relative_distance(metric.compute(), expected) < 1e-10

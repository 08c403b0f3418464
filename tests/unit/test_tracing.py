"""Recorded graphs (torch.jit.trace, ONNX, torch.export, make_fx, AOTInductor) give the eager numbers at any size."""

from __future__ import annotations

import io
import shutil

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, compat
from lpips_lightning.backbones import from_module
from lpips_lightning.tracing import is_symbolic, is_tracing, static_sizes, untraced

# The bound is float32's: eager and graph sum in other orders, over 10^3 to 10^4 products.
RTOL = 1e-5
NETS = ("embedded", "alex", "vgg", "squeeze")
OTHERS = ((3, 96, 80), (1, 64, 64), (2, 48, 144))  # the example is (2, 64, 64)
pytestmark = [
    # Of others, as found on 2026-11-28 with torch 2.14. TracerWarnings stay errors: they tell of constants.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the exporter on torch.jit.trace, and onnxscript
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch.jit.trace
    pytest.mark.filterwarnings("ignore:No complete tensor found in the group"),
]


class With(nn.Module):
    """A network that is called with options."""

    def __init__(self, net, **options):
        super().__init__()
        self.net, self.options = net, options

    def forward(self, x, y, mask=None):
        return self.net(x, y, **self.options) if mask is None else self.net(x, y, mask=mask, **self.options)


class Encoded(With):
    def forward(self, x, y):
        return self.net.distance(self.net.encode(x), self.net.encode(y))


class Untraceable(nn.Module):
    """torch.fx cannot trace it, so its features are read out by hooks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            raise TypeError("expected a tensor")
        return self.second(self.first(x))


def built(net, backbones, **options):
    return LPIPS(net, **({} if net == "embedded" else {"weights": backbones[net]}), **options).eval()


def embedded(make=With, **options):
    of_net = {name: options.pop(name) for name in ("resize", "gray", "background", "frame_chunk") if name in options}
    return make(LPIPS("embedded", **of_net), **options).eval()


def mapped(pair, change):
    return lambda *size: tuple(map(change, pair(*size)))


FACES = {  # the module, and its images made of those on [-1, 1]
    "compat": (lambda: compat.LPIPS(net="embedded").eval(), lambda t: t),
    "loss": (lambda: PerceptualLoss("embedded", data_range=(-1, 1)).eval(), lambda t: t),
    "metric.net": (lambda: LearnedPerceptualImagePatchSimilarity("embedded").net.eval(), lambda t: t),
    "baseline": (lambda: LPIPS("embedded", calibrated=False).eval(), lambda t: t),
    "range (0, 1)": (lambda: embedded(data_range=(0, 1)), lambda t: t / 2 + 0.5),
    "rounding overshoot": (lambda: embedded(data_range=(0, 1)), lambda t: t * 0.5009 + 0.5),
    "uint8": (lambda: embedded(), lambda t: (t * 127 + 128).to(torch.uint8)),
    "maps": (lambda: embedded(spatial=True), lambda t: t),
    "encode and distance": (lambda: embedded(Encoded), lambda t: t),
    "resize": (lambda: embedded(resize=64), lambda t: t),
    "gray repeat": (lambda: embedded(gray="repeat"), lambda t: t[:, :1]),
    "gray per_channel": (lambda: embedded(gray="per_channel"), lambda t: t),
    "alpha": (lambda: embedded(background="white"), lambda t: torch.cat((t, t[:, :1]), 1)),
    "videos": (lambda: embedded(), lambda t: t[None]),
    "frame_chunk": (lambda: embedded(frame_chunk=1), lambda t: t),
    "hooks": (lambda: LPIPS(from_module(Untraceable(), ["first", "second"]), calibrated=False).eval(), lambda t: t),
}


def assert_equal_values(graph, module, images, sizes=OTHERS):
    for size in sizes:
        given = images(*size)
        found, expected = graph(*given), module(*given)
        assert found.shape == expected.shape and bool((expected > 0).all())
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=RTOL * float(expected.max()))
        assert float(graph(given[0], given[0].clone(), *given[2:]).abs().max()) == 0


def run_onnx(module, example, dynamo):
    """The module by onnxruntime, with batch and sizes left open."""
    onnxruntime, stream = pytest.importorskip("onnxruntime"), io.BytesIO()
    names = {"input_names": ["x", "y"], "output_names": ["distance"]}
    if dynamo:
        auto = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
        program = torch.onnx.export(module, example, dynamo=True, dynamic_shapes=(auto, auto), verbose=False, **names)
        program.save(stream)
    else:
        axes = {name: {0: "N", 2: "H", 3: "W"} for name in ("x", "y")}
        torch.onnx.export(module, example, stream, dynamo=False, dynamic_axes={**axes, "distance": {0: "N"}}, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(stream.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(x, y):
        return torch.from_numpy(session.run(None, {"x": x.numpy(), "y": y.numpy()})[0])

    return run


def saved_and_loaded(save, load, graph):
    stream = io.BytesIO()
    save(graph, stream)
    return load(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("net", [net if net != "vgg" else pytest.param(net, marks=pytest.mark.slow) for net in NETS])
def test_traced_networks_take_any_size(net, backbones, pair):
    module = built(net, backbones)
    traced = torch.jit.trace(module, pair(2, 64, 64))
    assert not [*traced.parameters(), *traced.buffers()]
    for graph in (saved_and_loaded(torch.jit.save, torch.jit.load, traced), torch.jit.freeze(traced)):
        assert_equal_values(graph, module, pair, OTHERS[: 1 if net == "vgg" else 3])


def test_traces_of_large_images_take_small_ones_and_the_reverse(pair):
    net = LPIPS("embedded")
    large, small = torch.jit.trace(net, pair(1, 512, 512)), torch.jit.trace(net, pair(1, 64, 64))
    assert_equal_values(large, net, pair)
    assert_equal_values(small, net, pair, [(1, 512, 512)])


@pytest.mark.parametrize("name", FACES)
def test_every_face_and_option_is_traced(name, pair):
    make, change = FACES[name]
    module, images = make(), mapped(pair, change)
    graph = torch.jit.trace(module, images(2, 64, 64))
    sizes = [(1, 64, 64), (1, 48, 144)] if name == "loss" else OTHERS
    assert_equal_values(graph, module, images, sizes)


@pytest.mark.parametrize("wants", [True, False], ids=["example requires grad", "example does not"])
def test_gradients_of_traces_are_those_of_the_network(wants, pair):
    net = LPIPS("embedded")
    x, y = pair(2, 64, 64)
    traced = torch.jit.trace(net, (x.requires_grad_(wants), y))
    for graph in (traced, saved_and_loaded(torch.jit.save, torch.jit.load, traced)):
        for size in OTHERS:
            x, y = pair(*size)
            x[0, :, :4] = 1  # at the end of the range the gradient passes
            gradients = []
            for call in (graph, net):
                leaf = x.clone().requires_grad_()
                gradients.append(torch.autograd.grad(call(leaf, y).sum(), leaf)[0])
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[1].abs().max()))
            assert float(gradients[1].abs().max()) > 0


def test_predictions_off_the_range_are_traced_unclamped_as_they_are_measured(pair):
    net = LPIPS("embedded")
    x, y = pair(2, 64, 64)
    traced = torch.jit.trace(net, (x.requires_grad_(), y))
    x, y = pair(3, 96, 80)
    prediction = (1.8 * x).requires_grad_()
    torch.testing.assert_close(traced(prediction, y), net(prediction, y), rtol=RTOL, atol=0)


def test_masks_are_traced_and_eroded_ones_refused(pair):
    module, mask = embedded(), torch.rand(3, 96, 80)
    traced = torch.jit.trace(module, (*pair(2, 64, 64), torch.rand(2, 64, 64)))
    torch.testing.assert_close(traced(*pair(3, 96, 80), mask), module(*pair(3, 96, 80), mask), rtol=RTOL, atol=0)
    with pytest.raises(ValueError, match=r"erode: expected False in torch.jit.trace .* use torch.export"):
        torch.jit.trace(embedded(erode=True), (*pair(2, 64, 64), torch.ones(2, 64, 64)))
    with pytest.raises(ValueError, match=r"pairwise: expected a call outside torch.jit.trace"):
        torch.jit.trace(lambda x: module.net.pairwise(x), pair(2, 64, 64)[:1])


def test_shapes_are_checked_while_tracing_and_values_are_not(pair):
    net = LPIPS("embedded")
    x, y = pair(2, 64, 64)
    with pytest.raises(ValueError, match=r"y: expected the shape of x, \(2, 3, 64, 64\), got \(1, 3, 64, 64\)"):
        torch.jit.trace(net, (x, y[:1]))
    with pytest.raises(ValueError, match="x: expected sides of at least 31 pixels"):
        torch.jit.trace(net, (x[..., :30], y[..., :30]))
    traced = torch.jit.trace(net, (x * 9, y), check_trace=False)  # it would run net itself, which refuses the values
    torch.testing.assert_close(traced(x, y), net(x, y), rtol=RTOL, atol=0)


@pytest.mark.parametrize(  # test_export.py exports alex and squeeze
    "net", ["embedded", *(pytest.param(net, marks=pytest.mark.slow) for net in NETS[1:])]
)
def test_the_older_onnx_exporter_gives_the_numbers_of_the_network(net, backbones, pair):
    module = built(net, backbones)
    assert_equal_values(run_onnx(module, pair(2, 64, 64), dynamo=False), module, pair)


@pytest.mark.parametrize(
    "name", ["compat", "loss", "metric.net", "range (0, 1)", "rounding overshoot", "uint8", "maps"]
)
def test_the_older_onnx_exporter_takes_every_face(name, pair):
    make, change = FACES[name]
    module, images = make(), mapped(pair, change)
    assert_equal_values(run_onnx(module, images(2, 64, 64), dynamo=False), module, images)


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_the_newer_onnx_exporter_gives_the_numbers_of_the_network(net, backbones, pair):
    pytest.importorskip("onnxscript")
    module = built(net, backbones)
    assert_equal_values(run_onnx(module, pair(2, 64, 64), dynamo=True), module, pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compat", "loss", "range (0, 1)", "uint8", "maps", "resize", "gray per_channel"])
def test_the_newer_onnx_exporter_takes_every_face(name, pair):
    pytest.importorskip("onnxscript")
    make, change = FACES[name]
    module, images = make(), mapped(pair, change)
    assert_equal_values(run_onnx(module, images(2, 64, 64), dynamo=True), module, images)


def exported(module, example, strict):
    auto = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(module, example, dynamic_shapes=(auto, auto), strict=strict)
    return saved_and_loaded(torch.export.save, torch.export.load, program).module()


# 2025-01, torch/fx/graph.py of torch 2.6: the constants of a program that owns no module.
@pytest.mark.filterwarnings("ignore:.*get_attr")
@pytest.mark.parametrize(
    ("net", "strict"),
    [
        ("embedded", False),
        *(
            pytest.param(net, strict, marks=pytest.mark.slow)
            for net in NETS
            for strict in (False, True)
            if (net, strict) != ("embedded", False)
        ),
    ],
)
def test_torch_export_takes_any_size(net, strict, backbones, pair):
    module = built(net, backbones)
    assert_equal_values(exported(module, pair(2, 64, 64), strict), module, pair)


@pytest.mark.filterwarnings("ignore:.*get_attr")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["compat", "maps", "range (0, 1)", "resize", "frame_chunk", "uint8"])
def test_torch_export_takes_every_face(name, pair):
    make, change = FACES[name]
    module, images = make(), mapped(pair, change)
    assert_equal_values(exported(module, images(2, 64, 64), False), module, images)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_aot_inductor_takes_any_size(tmp_path, pair):
    net, auto = LPIPS("embedded").eval(), dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(net, pair(2, 64, 64), dynamic_shapes=(auto, auto), strict=False)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "lpips.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for size in OTHERS:
        torch.testing.assert_close(run(*pair(*size)), net(*pair(*size)), rtol=RTOL, atol=0)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_records_plain_operations(mode, pre_dispatch, pair):
    net = LPIPS("embedded")
    graph = make_fx(net, tracing_mode=mode, pre_dispatch=pre_dispatch, _allow_non_fake_inputs=True)(*pair(1, 256, 256))
    size = (3, 96, 80) if mode == "symbolic" else (1, 256, 256)
    x, y = pair(*size, seed=1)
    torch.testing.assert_close(graph(x, y), net(x, y), rtol=RTOL, atol=0)


def test_functionalize_and_make_fx_of_a_gradient(pair):
    net = LPIPS("embedded")
    x, y = pair(2, 64, 64)
    torch.testing.assert_close(torch.func.functionalize(net)(x, y), net(x, y), rtol=RTOL, atol=0)

    def gradient(x, y):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(net(leaf, y).sum(), leaf)[0]

    graph = make_fx(gradient)(x, y)
    x, y = pair(2, 64, 64, seed=1)
    expected = gradient(x, y)
    torch.testing.assert_close(graph(x, y), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_fake_tensors_give_shapes_and_leave_real_networks(pair):
    x, y = pair(1, 256, 256)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(images) for images in (x, y)]
        assert LPIPS("embedded", validate_args=False)(*fakes).shape == (1,)
        prediction = fakes[0].clone().requires_grad_()
        PerceptualLoss("embedded", data_range=(-1, 1), validate_args=False)(prediction, fakes[1]).backward()
        assert prediction.grad.shape == x.shape
        made = [LPIPS("squeeze", weights="random"), LPIPS("embedded", precision="bf16", validate_args=False)]
        made[1](*fakes)  # makes the copy in bfloat16
    for net in made:
        assert bool(net(x, y).isfinite())


@pytest.mark.parametrize("name", ["LPIPS", "compat", "loss", "child"])
def test_symbolic_traces_are_refused_with_a_way_out(name):
    module = LPIPS("embedded") if name in ("LPIPS", "child") else FACES[name][0]()
    module = nn.ModuleDict({"net": With(module)})["net"] if name == "child" else module
    with pytest.raises(TypeError, match="got a torch.fx.Proxy, which has no shape; use torch.export.export, or a"):
        torch.fx.symbolic_trace(module, {"mask": None} if name == "child" else None)


@pytest.mark.parametrize("face", [LPIPS, PerceptualLoss, compat.LPIPS])
def test_scripted_modules_are_refused_with_a_way_out(face, pair):
    # torch.jit.script keeps a forward that it must not compile, and calls it with the scripted module.
    with pytest.raises(TypeError, match="got one of torch.jit.script; use torch.jit.trace instead"):
        face.forward(torch.jit.script(nn.Identity()), *pair())


def test_a_leaf_of_a_symbolic_trace_is_called_as_it_is(pair):
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, LPIPS) or super().is_leaf_module(module, name)

    module = embedded()
    graph = torch.fx.GraphModule(module, Leaves().trace(module, {"mask": None}))
    assert torch.equal(graph(*pair()), module(*pair()))


def test_half_precision_copies_made_while_tracing_hold_weights(pair):
    for _ in range(2):
        net = LPIPS("embedded", precision="bf16")
        traced = torch.jit.trace(net, pair(2, 64, 64))
        torch.testing.assert_close(traced(*pair(3, 96, 80)), net(*pair(3, 96, 80)), rtol=RTOL, atol=0)


def test_recording_is_known_and_can_be_suspended():
    seen = {}

    def look(x):
        seen["tracing"] = is_tracing(), is_symbolic(x)
        seen["sizes"] = static_sizes(x.shape)
        with untraced():
            seen["untraced"] = is_tracing()
        seen["again"] = is_tracing()
        return x + 1

    for record in (
        lambda: torch.jit.trace(look, torch.ones(2, 3), check_trace=False),
        lambda: make_fx(look)(torch.ones(2, 3)),
    ):
        seen.clear()
        record()
        assert seen == {"tracing": (True, True), "sizes": (2, 3), "untraced": False, "again": True}
        assert all(type(size) is int for size in seen["sizes"])
    look(torch.ones(2, 3))
    assert seen == {"tracing": (False, False), "sizes": (2, 3), "untraced": False, "again": False}

"""Exported files: the network's distances without this package, records of the weights, nothing half-written."""

from __future__ import annotations

import json

import forked_python
import pytest
import torch

from lpips_lightning import LPIPS, PerceptualLoss, __version__, export, export_network
from lpips_lightning.cli import commands as cli
from lpips_lightning.cli import export as export_cli
from lpips_lightning.export import EXTRA_FILE, Format
from lpips_lightning.weights.lookup import file_sha256

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}


def read(path, kind):
    """``(function of x and y, metadata)`` of a file, as its users read it."""
    if kind == "onnx":
        onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert [given.name for given in session.get_inputs()] == ["x", "y"]
        assert [given.name for given in session.get_outputs()] == ["distance"]
        return lambda x, y: torch.from_numpy(session.run(None, {"x": x.numpy(), "y": y.numpy()})[0]), metadata
    extra = {EXTRA_FILE: ""}
    if kind == "pt2":
        run = torch.export.load(path, extra_files=extra).module()
    else:
        run = torch.jit.load(path, _extra_files=extra)
    return run, json.loads(extra[EXTRA_FILE])


# 2026-11-28, torch 2.14: "`torch.jit.load` is deprecated".
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "pt2" else kind for kind in SUFFIXES]
)
def test_files_give_the_networks_distances_and_say_what_they_hold(kind, tmp_path, pair):
    pytest.importorskip("onnx")
    net = LPIPS("embedded")
    file = export_network(net, tmp_path / "deep" / f"lpips{SUFFIXES[kind]}", data_range=(0, 1), size=(64, 72))
    run, metadata = read(file.path, kind)
    for size in ((3, 96, 80), (1, 64, 136)):
        x, y = (images / 2 + 0.5 for images in pair(*size))
        torch.testing.assert_close(run(x, y), net(x, y, data_range=(0, 1)), rtol=1e-5, atol=0)
        assert float(run(x, x).abs().max()) == 0
    assert (
        metadata
        == file.metadata
        == {
            "fingerprint": net.fingerprint,
            "backbone": "embedded",
            "backbone_sha256": net.specification.backbone_sha256,
            "calibration_sha256": net.specification.calibration_sha256,
            "data_range": "[0.0, 1.0]",
            "inputs": "x, y: float32 (N, 3, H, W) on data_range",
            "output": "distance: float32 (N,)",
        }
    )
    assert file.sha256 == file_sha256(file.path) and 0 <= file.error < 1e-5
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    weights = sum(p.numel() * p.element_size() for p in net.frozen_network().parameters())
    assert file.path.stat().st_size < 1.5 * weights  # once, not once for each of x and y
    found = eval(file.usage.replace('{"x": x, "y": y}', '{"x": x.numpy(), "y": y.numpy()}'), _names(x, y))
    torch.testing.assert_close(torch.as_tensor(found), run(x, y), rtol=1e-6, atol=0)
    assert not next(net.frozen_network().parameters()).requires_grad and not list(net.parameters())


def _names(x, y):
    import onnxruntime

    return {"torch": torch, "onnxruntime": onnxruntime, "x": x, "y": y}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("options", [{"version": "0.0"}, {"calibrated": False}])
@pytest.mark.parametrize("net", ["alex", *(pytest.param(net, marks=pytest.mark.slow) for net in ("squeeze", "vgg"))])
def test_every_net_and_version_is_exported(net, options, backbones, tmp_path, pair):
    network = LPIPS(net, weights=backbones[net], **options)
    onnx = export_network(network, tmp_path / "lpips.onnx", "onnx") if _has("onnx", "onnxruntime") else None
    script = export_network(network, tmp_path / "lpips", "torchscript")
    x, y = pair(3, 96, 80)
    for file, kind in ((onnx, "onnx"), (script, "torchscript")):
        if file is not None:
            torch.testing.assert_close(read(file.path, kind)[0](x, y), network(x, y), rtol=1e-5, atol=0)
            assert file.metadata["fingerprint"] == network.fingerprint
    assert _has("torch")


def _has(*names):
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in names)


def test_traces_do_not_need_this_package(tmp_path):
    file = export_network(LPIPS("embedded"), tmp_path / "lpips.pt")
    code = f"""
import sys, warnings, torch
warnings.simplefilter("ignore")
run = torch.jit.load({str(file.path)!r})
x = torch.rand(2, 3, 50, 60)
print(run(x, x).tolist(), [name for name in sys.modules if name.startswith("lpips")])
"""
    shown = forked_python.run(["-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert shown.stdout == "[0.0, 0.0] []\n"


REFUSED = {
    "suffix": (
        "a.bin",
        {},
        "format: expected one of 'onnx', 'torchscript', 'pt2', or .* in one of .onnx, .pt, .pts, .pt2, got '.*a.bin'",
    ),
    "format": ("a.pt", {"format": "tflite"}, "format: expected one of 'onnx', 'torchscript', 'pt2', got 'tflite'"),
    "opset of another format": ("a.pt", {"opset": 17}, "opset: expected None for torchscript, got 17"),
    "old opset": ("a.onnx", {"opset": 9}, "opset: expected 11 or later, got 9"),
    "unknown opset": ("a.onnx", {"opset": 99}, "opset: expected a version that PyTorch can export, got 99"),
    "small": ("a.pt", {"size": (64, 30)}, r"size: expected two sides of at least 31 pixels, got \(64, 30\)"),
    "three sides": (
        "a.pt",
        {"size": (64, 64, 64)},
        r"size: expected two sides of at least 31 pixels, got \(64, 64, 64",
    ),
    "range": ("a.pt", {"data_range": (1, 0)}, "data_range: expected low < high"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_before_anything_is_written(name, tmp_path):
    file, options, message = REFUSED[name]
    if file.endswith("onnx"):
        pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=f"^{message}"):
        export_network(LPIPS("embedded"), tmp_path / file, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "net: expected precision='fp32' to export, got 'bf16'"),
        ({"gray": "repeat"}, "net: expected a network of RGB images to export, got one with gray repeat"),
        ({"background": "white"}, "net: expected a network of RGB images to export, got one with alpha over"),
        ({"resize": 64}, "net: expected resize=None for onnx, got a network that resizes; resize the images first"),
    ],
)
def test_networks_that_no_file_can_hold_are_refused(options, message, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=message):
        export_network(LPIPS("embedded", **options), tmp_path / "lpips.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_that_holds_a_network_is_refused_with_a_way_out(tmp_path):
    loss = PerceptualLoss("embedded", data_range=(0, 1))
    with pytest.raises(TypeError, match="net: expected an LPIPS, got PerceptualLoss; its attribute net is one"):
        export_network(loss, tmp_path / "a.pt")
    assert export_network(loss.net, tmp_path / "a.pt").error < 1e-5
    with pytest.raises(TypeError, match="net: expected an LPIPS, got str$"):
        export_network("embedded", tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_files_are_float32_under_autocast_and_another_default(tmp_path, pair):
    x, y = pair()
    net = LPIPS("embedded")
    expected = net(x, y)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            export_network(net, tmp_path / "a.pt")
    finally:
        torch.set_default_dtype(default)
    found = torch.jit.load(tmp_path / "a.pt")(x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_file_with_other_distances_never_gets_its_name(tmp_path, monkeypatch):
    path = tmp_path / "lpips.pt"
    path.write_bytes(b"the old file")
    monkeypatch.setattr(export, "_run_torchscript", lambda data: lambda x, y: torch.zeros(len(x)))
    with pytest.raises(
        ValueError, match="path: expected the network's distances from the torchscript file, got a diff"
    ):
        export_network(LPIPS("embedded"), path)
    assert path.read_bytes() == b"the old file" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(export, "_run_torchscript", lambda data: lambda x, y: torch.full((len(x),), torch.nan))
    with pytest.raises(ValueError, match="got a difference of nan"):
        export_network(LPIPS("embedded"), path)


def test_missing_onnx_is_an_error_and_missing_onnxruntime_is_said(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert cli.main(["export", "--net", "embedded", "--out", str(tmp_path / "a.onnx")]) == 0
    assert "not verified: onnxruntime is not installed" in capsys.readouterr().out
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert cli.main(["export", "--net", "embedded", "--out", str(tmp_path / "b.onnx")]) == 2
    assert capsys.readouterr().err == 'lpips-lightning: onnx is missing: pip install "lpips_lightning[onnx]"\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_command_prints_fingerprint_sha256_and_how_to_load(tmp_path, capsys, pair):
    path = tmp_path / "lpips.pt"
    rest = ["--net", "embedded", "--baseline", "--data-range", "0", "255", "--size", "48", "56"]
    assert cli.main(["export", "--out", str(path), *rest]) == 0
    net = LPIPS("embedded", calibrated=False)
    fingerprint, written, verified, load = capsys.readouterr().out.splitlines()
    assert fingerprint == net.fingerprint and __version__ in fingerprint
    assert written == f"sha256 {file_sha256(path)}  {path}"
    assert verified.startswith("verified: distances differ from the network's by at most ")
    assert load == f"load: torch.jit.load({str(path)!r})(x, y)"
    x, y = (images * 127 + 128 for images in pair())
    torch.testing.assert_close(torch.jit.load(path)(x, y), net(x, y, data_range=255), rtol=1e-5, atol=0)


def test_the_command_refuses_what_it_cannot_write(tmp_path, capsys):
    assert cli.main(["export", "--net", "embedded", "--out", str(tmp_path)]) == 2
    assert "out: expected a file to write" in capsys.readouterr().err
    assert cli.main(["export", "--net", "embedded", "--out", str(tmp_path / "a.bin")]) == 2
    assert "format: expected one of 'onnx', 'torchscript', 'pt2'" in capsys.readouterr().err
    assert cli.main(["export", "--net", "embedded", "--out", str(tmp_path / "a.pt"), "--data-range", "1", "0"]) == 2
    assert "data-range: expected LOW < HIGH, both finite, got 1 0\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export", "--net", "embedded"])


def test_formats_repeated_without_torch_are_those_of_the_library():
    assert export_cli.FORMATS == Format.__args__ == tuple(SUFFIXES)

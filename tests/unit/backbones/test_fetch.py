"""`lpips-lightning weights fetch`: whole files under the names that the lookup finds, or nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import socket
import traceback
import urllib.error
import urllib.request

import pytest
import torch

from lpips_lightning import LPIPS
from lpips_lightning.backbones.fetch import _nothing_found, fetch_backbone
from lpips_lightning.cli import commands as cli
from lpips_lightning.data.bapps_download import ARCHIVES, fetch
from lpips_lightning.weights import BACKBONE_FILES, BackboneFile, WeightsError

URLOPEN = urllib.request.urlopen  # the tests have no network, but file:// is none


@pytest.fixture(autouse=True)
def _files_can_be_opened(monkeypatch):
    def only_files(request, **options):
        assert request.full_url.startswith("file://")
        return URLOPEN(request, **options)

    monkeypatch.setattr(urllib.request, "urlopen", only_files)


def source(folder, content, name="backbone"):
    """A mirror with one file, and its record."""
    record = BackboneFile(name, f"https://nowhere.invalid/{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth", None)
    folder.mkdir(exist_ok=True)
    (folder / record.file).write_bytes(content)
    return record


@pytest.fixture
def squeeze(tmp_path, monkeypatch, backbones):
    """A mirror that holds a seeded SqueezeNet, of which the record knows the sha256."""
    buffer = io.BytesIO()
    torch.save(backbones["squeeze"], buffer)
    record = source(tmp_path / "mirror", buffer.getvalue(), "squeezenet1_1")
    monkeypatch.setitem(BACKBONE_FILES, "squeezenet1_1", record)
    return record


@pytest.mark.parametrize("scheme", [True, False])
def test_fetched_backbones_are_found_and_left_alone_the_next_time(squeeze, tmp_path, scheme, capsys, monkeypatch):
    mirror = (tmp_path / "mirror").as_uri() if scheme else str(tmp_path / "mirror")
    folder = tmp_path / "my weights [b]"
    fetch = ["weights", "fetch", "--to", str(folder), "--net", "squeeze", "--mirror", mirror]
    assert cli.main(fetch) == 0
    said = capsys.readouterr().out
    assert f"squeeze: fetched: {folder / squeeze.file}\n" in said
    assert f"export LPIPS_LIGHTNING_WEIGHTS='{folder}'\n" in said
    assert [path.name for path in folder.iterdir()] == [squeeze.file]
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(folder))
    assert LPIPS("squeeze").specification.backbone == "IMAGENET1K_V1"
    (tmp_path / "mirror" / squeeze.file).unlink()
    assert cli.main(fetch) == 0
    assert "squeeze: present: " in capsys.readouterr().out


def test_a_damaged_file_is_fetched_anew(tmp_path):
    record = source(tmp_path / "mirror", b"whole" * 1000)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / record.file).write_bytes(b"whole")
    assert fetch_backbone(record, tmp_path / "to", str(tmp_path / "mirror"))
    assert (tmp_path / "to" / record.file).read_bytes() == b"whole" * 1000
    assert not fetch_backbone(record, tmp_path / "to", str(tmp_path / "mirror"))


def test_another_sha256_is_refused_and_leaves_what_was_there(tmp_path):
    record = source(tmp_path / "mirror", b"whole" * 1000)
    (tmp_path / "mirror" / record.file).write_bytes(b"whole" * 999 + b"while")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / record.file).write_bytes(b"old")
    with pytest.raises(WeightsError, match=rf"begins with {record.sha256_prefix}, got \w{{12}} \(5000 bytes\)"):
        fetch_backbone(record, tmp_path / "to", str(tmp_path / "mirror"))
    assert [path.read_bytes() for path in (tmp_path / "to").iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--net", "alexnet"], "net: expected some of alex, vgg, squeeze, comma-separated, got 'alexnet'"),
        (["--net", "embedded"], "got 'embedded'; it is packaged, there is nothing to fetch"),
        (["--net", "squeeze", "--from", "nowhere"], "nowhere/squeezenet1_1-b8a52dc0.pth: expected to download it"),
        (["--net", "squeeze", "--mirror", "gopher://x"], "gopher://x/squeezenet1_1-b8a52dc0.pth: expected to download"),
    ],
)
def test_mistakes_are_two_and_one_sentence(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["weights", "fetch", "--to", "to", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not any((tmp_path / "to").glob("*"))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "to").write_text("x")
    assert cli.main(["weights", "fetch", "--to", str(tmp_path / "to")]) == 2
    assert "to: expected a folder to write, got" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_file_is_fetched_all_the_same(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    record = source(tmp_path / "mirror", b"whole" * 1000)
    assert fetch_backbone(record, tmp_path / "to", str(tmp_path / "mirror"))
    assert [path.name for path in (tmp_path / "to").iterdir()] == [record.file]


def test_a_lookup_that_downloads_takes_the_same_way(squeeze, tmp_path, monkeypatch):
    mirrored = BackboneFile("squeezenet1_1", (tmp_path / "mirror" / squeeze.file).as_uri(), None)
    monkeypatch.setitem(BACKBONE_FILES, "squeezenet1_1", mirrored)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert LPIPS("squeeze").specification.backbone == "IMAGENET1K_V1"
    assert [path.name for path in (tmp_path / "home/hub/checkpoints").iterdir()] == [squeeze.file]


UNREACHABLE = {
    "no name server": (socket.gaierror(-2, "Name or service not known"), "the name .* could not be resolved"),
    "no route": (OSError(errno.ENETUNREACH, "Network is unreachable"), r"no network: .* \(Network is unreachable\)"),
    "no answer": (TimeoutError("timed out"), "did not answer in time"),
}


@pytest.fixture(params=UNREACHABLE)
def offline(request, monkeypatch, tmp_path):
    """What a machine without a network says."""
    reason, said = UNREACHABLE[request.param]

    def refuse(*_, **__):
        raise urllib.error.URLError(reason) if request.param != "no answer" else reason

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LPIPS_LIGHTNING_WEIGHTS", raising=False)
    return said


def test_without_a_network_one_error_names_the_reason_and_the_ways_out(offline, tmp_path):
    calls = [
        lambda: LPIPS("vgg"),
        lambda: fetch_backbone(BACKBONE_FILES["vgg16"], tmp_path),
        lambda: fetch(ARCHIVES["jnd/val"], tmp_path / "bapps"),
    ]
    for call in calls:
        with pytest.raises((OSError, WeightsError), match=offline) as caught:
            call()
        shown = "".join(traceback.format_exception(caught.value))
        assert shown.count("Traceback (most recent call last)") == 1
    with pytest.raises(WeightsError) as caught:
        LPIPS("vgg")
    for named in (
        'net_type="embedded"',
        "lpips-lightning weights fetch --net vgg --to DIR",
        "LPIPS_LIGHTNING_WEIGHTS=DIR",
        "weights=DIR",
        str(tmp_path / "home/hub/checkpoints/vgg16-397923af.pth"),
    ):
        assert named in str(caught.value)


def test_a_backbone_that_is_not_ours_is_not_told_to_be_another():
    assert "weights fetch" not in _nothing_found("resnet18", None, [], None)


OFFLINE_COMMANDS = {
    "compare a.png b.png": ["--net embedded", "--weights DIR"],
    "correlate scores.csv": ["--net embedded", "--weights DIR"],
    "export --out a.onnx": ["--net embedded", "--weights DIR"],
    "superresolution validate": ["--scores.net_type embedded", "--scores.weights DIR"],  # the loss's needs no file
    "calibration fit": ["--model.net_type embedded", "--model.weights DIR"],
    "distillation fit": ["--model.teacher embedded", "--model.teacher_weights DIR"],
}


@pytest.mark.parametrize("command", OFFLINE_COMMANDS)
def test_on_the_command_line_the_ways_out_are_options_of_the_command(command, monkeypatch, capsys):
    named = OFFLINE_COMMANDS[command]
    message = _nothing_found("alexnet", BACKBONE_FILES["alexnet"], [], None)

    def missing(*_, **__):
        raise WeightsError(message)

    name, action, *_ = command.split()
    with pytest.raises(SystemExit):
        cli.main(
            [
                name,
                *[action] * (action in cli.COMMANDS[name].actions),
                "--help=all" if cli.COMMANDS[name].actions else "--help",
            ]
        )
    known = capsys.readouterr().out
    assert all(option.split()[0] in known for option in named)
    monkeypatch.setattr(cli.COMMANDS[name].target.replace(":", "."), missing)
    assert cli.main(command.split()) == 2
    said = capsys.readouterr().err
    assert all(option in said for option in named)
    assert "net_type=" not in said and "weights=" not in said


def test_calibration_fast_is_told_its_own_option():
    message = _nothing_found("alexnet", BACKBONE_FILES["alexnet"], [], None)
    error = WeightsError(message)
    assert "--net embedded" in cli._as_typed(error, "calibration", ["fast", "--csv", "a.csv"])
    assert "--model.net_type embedded" in cli._as_typed(error, "calibration", ["fit"])

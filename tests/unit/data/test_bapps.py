"""BAPPS data sets: content of items, and errors that name the damaged file."""

import forked_python
import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_bapps
from torch.utils.data import default_collate
from torchvision import transforms

from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset

COUNTS = {"2afc/train/cnn": 2, "2afc/val/cnn": 3, "2afc/val/color": 2, "jnd/val/cnn": 2}


@pytest.fixture
def root(tmp_path):
    return write_bapps(tmp_path / "bapps", COUNTS)


def test_items_hold_the_triplet_on_minus_one_to_one_and_its_judgment(root):
    data = TwoAFCDataset(root, "val", ("color", "cnn"), size=16)
    assert len(data) == 5
    item = data[1]
    assert sorted(item) == ["judge", "p0", "p1", "path", "ref", "set"]
    assert (item["set"], item["path"]) == ("color", "2afc/val/color/ref/000001.png")
    for kind in ("ref", "p0", "p1"):
        pixels = np.array(Image.open(root / "2afc/val/color" / kind / "000001.png"))
        assert torch.equal(item[kind], torch.from_numpy(pixels.transpose(2, 0, 1)).float() / 255 * 2 - 1)
    assert item["judge"].dtype == torch.float32 and item["judge"].shape == ()
    assert item["judge"] == np.load(root / "2afc/val/color/judge/000001.npy")
    assert [data[index]["set"] for index in range(5)] == ["color"] * 2 + ["cnn"] * 3


def test_pairs_hold_the_fraction_that_saw_no_difference(root):
    data = JNDDataset(root, ("cnn",), size=None)
    item = data[1]
    assert len(data) == 2 and sorted(item) == ["p0", "p1", "path", "same", "set"]
    assert item["path"] == "jnd/val/cnn/p0/000001.png"
    assert item["same"] == np.load(root / "jnd/val/cnn/same/000001.npy")
    assert item["p0"].shape == (3, 16, 16) and not torch.equal(item["p0"], item["p1"])


def test_items_make_batches(root):
    data = TwoAFCDataset(root, "train", ("cnn",), size=16)
    batch = default_collate([data[0], data[1]])
    assert batch["ref"].shape == (2, 3, 16, 16) and batch["judge"].shape == (2,)
    assert batch["set"] == ["cnn", "cnn"]


@pytest.mark.parametrize("size", [8, 24])
def test_resizing_is_that_of_the_reference_loader(root, size):
    item = TwoAFCDataset(root, "val", ("cnn",), size=size)[2]
    steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    expected = transforms.Compose(steps)(Image.open(root / "2afc/val/cnn/ref/000002.png"))
    assert torch.allclose(item["ref"], expected, rtol=0, atol=1e-6)


def test_images_that_are_not_square_are_cropped_to_their_middle(root):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    for kind in ("ref", "p0", "p1"):
        Image.fromarray(wide).save(root / f"2afc/val/cnn/{kind}/000000.png")
    item = TwoAFCDataset(root, "val", ("cnn",), size=16)[0]
    assert item["ref"].shape == (3, 16, 16) and (item["ref"] == 1).all()


def test_default_sets_are_the_papers(root):
    with pytest.raises(FileNotFoundError, match=r"sets: expected some of cnn, color in '.*val', got 'traditional'"):
        TwoAFCDataset(root)
    with pytest.raises(FileNotFoundError, match=r"sets: expected some of cnn in '.*train', got 'traditional'"):
        TwoAFCDataset(root, "train")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "test"}, ValueError, r"split: expected one of \('train', 'val'\), got 'test'"),
        ({"sets": "cnn"}, ValueError, "sets: expected unique names of sets, got 'cnn'"),
        ({"sets": ["cnn", "cnn"]}, ValueError, "sets: expected unique names"),
        ({"sets": []}, ValueError, "sets: expected unique names"),
        ({"size": 0, "sets": ["cnn"]}, ValueError, "size: expected at least 1 or None, got 0"),
        (
            {"folder": "gone"},
            FileNotFoundError,
            "folder: expected the folder of a BAPPS data set, got none at 'gone/2",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(root, arguments, error, message):
    with pytest.raises(error, match=message):
        TwoAFCDataset(**({"folder": root} | arguments))


@pytest.mark.parametrize("kind", ["p0", "p1", "judge"])
def test_a_missing_file_is_named_when_the_data_set_is_opened(root, kind):
    path = root / "2afc/val/cnn" / kind / ("000001.npy" if kind == "judge" else "000001.png")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"cnn/{kind}/{path.name}: expected a file for each of the 3 images"):
        TwoAFCDataset(root, sets=("cnn",))


def test_a_file_too_many_and_an_empty_set_are_named_when_the_data_set_is_opened(root):
    np.save(root / "jnd/val/cnn/same/000007.npy", 1.0)
    with pytest.raises(FileNotFoundError, match=r"same/000007.npy: expected an image of this name in 'p0', got none"):
        JNDDataset(root, ("cnn",))
    write_bapps(root, {"jnd/val/empty": 0})
    with pytest.raises(FileNotFoundError, match=r"empty/p0: expected images \(.bmp"):
        JNDDataset(root, ("empty",))


def test_files_that_are_no_images_or_judgments_are_counted(root):
    (root / "jnd/val/cnn/p0/notes.txt").write_text("text")
    (root / "jnd/val/cnn/p1/.DS_Store").write_bytes(b"")
    (root / "jnd/val/cnn/same/old.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 file left out") as caught:
        assert len(JNDDataset(root, ("cnn",))) == 2
    said = [str(warning.message) for warning in caught]
    assert [text.partition("cnn/")[2] for text in said] == [
        "p0: 1 file left out: 'notes.txt' (not an image)",
        "same: 1 file left out: 'old.npz' (no .npy file)",
    ]


def test_a_truncated_image_is_named_when_it_is_read(root):
    path = root / "2afc/val/cnn/p1/000002.png"
    path.write_bytes(path.read_bytes()[:300])
    data = TwoAFCDataset(root, sets=("cnn",))
    assert data[0]["p1"].shape == (3, 64, 64)
    with pytest.raises(ValueError, match=r"cnn/p1/000002.png: expected a readable image, got"):
        data[2]


def test_images_of_unequal_size_are_named(root):
    Image.new("RGB", (16, 24)).save(root / "2afc/val/cnn/p0/000001.png")
    with pytest.raises(ValueError, match=r"p0/000001.png: expected the size of .*ref/000001.png, 16x16.*, got 24x16"):
        TwoAFCDataset(root, sets=("cnn",))[1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(1.2), r"expected a number in \[0, 1\], got 1.2"),
        (np.float32("nan"), r"expected a number in \[0, 1\], got nan"),
        (np.zeros(2), r"expected one number, got shape \(2,\) of float64"),
        (np.array("a"), "expected one number, got shape"),
    ],
)
def test_a_judgment_that_is_no_fraction_is_named(root, value, message):
    np.save(root / "2afc/val/cnn/judge/000000.npy", value)
    with pytest.raises(ValueError, match=f"judge/000000.npy: {message}"):
        TwoAFCDataset(root, sets=("cnn",))[0]


def test_a_judgment_of_one_element_in_any_shape_is_read(root):
    np.save(root / "2afc/val/cnn/judge/000000.npy", np.full((1, 1), 0.6))
    assert TwoAFCDataset(root, sets=("cnn",))[0]["judge"] == np.float32(0.6)


def test_a_damaged_judgment_is_named(root):
    (root / "jnd/val/cnn/same/000000.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(ValueError, match=r"same/000000.npy: expected a NumPy file of one number, got"):
        JNDDataset(root, ("cnn",))[0]
    (root / "jnd/val/cnn/same/000001.npy").unlink()
    (root / "jnd/val/cnn/same/000001.npy").mkdir()
    with pytest.raises(ValueError, match=r"same/000001.npy: expected a NumPy file of one number, got IsADirectory"):
        JNDDataset(root, ("cnn",))[1]


def test_data_sets_and_correlations_need_no_lightning():
    modules = [f"data.{name}" for name in ("bapps", "bapps_download", "bapps_generate", "distortion_sheet", "samplers")]
    modules += ["data.triplets", "evaluation.opinion_scores", "functional.correlation"]
    imports = ", ".join(f"lpips_lightning.{module}" for module in modules)
    code = f"import sys, {imports}; print('pytorch_lightning' in sys.modules)"
    assert forked_python.run(["-c", code], capture_output=True, check=True).stdout == "False\n"

"""Frame triplets: synthetic motion and files."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_noise

from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes.frame_interpolation_data import FrameInterpolationData
from lpips_lightning.recipes.frame_triplets import (
    FramePair,
    FramePairs,
    FrameTriplet,
    FrameTriplets,
    clip_pairs,
    clip_triplets,
    clips,
    middlebury_triplets,
    name_between,
    natural_key,
    vimeo_triplets,
)
from lpips_lightning.recipes.photographs import bundled_photographs
from lpips_lightning.recipes.synthetic_motion import TIMES, Layer, Motion, SyntheticMotion, render

STILL = torch.tensor([[1.0, 0.0, 40.0], [0.0, 1.0, 30.0]])  # the frame's middle is pixel (40, 30) of the image


@pytest.fixture
def folder(tmp_path):
    return write_noise(tmp_path / "images")


def eight_bit_noise(height=60, width=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator) / 255


@pytest.mark.parametrize(("right", "down"), [(4, 0), (-6, 2), (0, 0)])
def test_a_translation_by_integers_is_an_exact_crop(right, down):
    image = eight_bit_noise()
    frames = render([Layer(image, STILL, Motion((right, down)))], (20, 24))
    for time, frame in zip(TIMES, frames, strict=True):
        # What lies at (40, 30) of the image is at time * pan from the frame's middle, pixel (12, 10).
        left, top = 40 - 12 - int(time * right), 30 - 10 - int(time * down)
        assert torch.equal(frame, image[:, top : top + 20, left : left + 24])


def test_a_translation_by_fractions_is_between_its_neighbors():
    image = eight_bit_noise()
    first, middle, last = render([Layer(image, STILL, Motion((1.0, 0.0)))], (20, 24))
    assert torch.equal(middle, image[:, 20:40, 28:52])
    assert (first - (image[:, 20:40, 28:52] + image[:, 20:40, 29:53]) / 2).abs().max() <= 0.51 / 255
    assert (last - (image[:, 20:40, 28:52] + image[:, 20:40, 27:51]) / 2).abs().max() <= 0.51 / 255


def test_turns_and_zooms_are_about_their_pivot_and_undone_by_their_origin():
    motion = Motion((6.0, -2.0), turn=0.2, zoom=0.1, pivot=(5.0, 3.0))
    for time in TIMES:
        # Forward, by hand, of some points of the layer.
        points = torch.tensor([[0.0, 5.0, -7.0], [0.0, 3.0, 9.0]])
        angle, factor = time * 0.2, math.exp(time * 0.1)
        turn = factor * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        pivot, pan = torch.tensor([[5.0], [3.0]]), torch.tensor([[6.0], [-2.0]])
        moved = pivot + turn @ (points - pivot) + time * pan
        origin = motion.origin(time)
        assert torch.allclose(origin[:, :2] @ moved + origin[:, 2:], points, atol=1e-5)
    assert torch.equal(motion.origin(0.0), torch.eye(2, 3))


def test_a_patch_covers_the_background_and_takes_its_mask_along():
    def left_half(x, y):
        return (x < 0).float()

    white, black = torch.ones(3, 60, 80), torch.zeros(3, 60, 80)
    patch = Layer(white, STILL, Motion((8.0, 0.0)), left_half)
    frames = render([Layer(black, STILL), patch], (20, 24))
    # The edge lies at the frame's middle, pixel 12, at time 0, and 4 pixels to its left and right before and after.
    for frame, edge in zip(frames, (8, 12, 16), strict=True):
        assert torch.equal(frame[..., :edge], torch.ones(3, 20, edge))
        assert torch.equal(frame[..., edge:], torch.zeros(3, 20, 24 - edge))


def test_samples_depend_only_on_seed_epoch_and_index(folder):
    files = {path.stem: path for path in sorted(folder.glob("*.png"))}
    data = [SyntheticMotion(files, (32, 40), 5, 8, seed) for seed in (0, 0, 1)]
    torch.manual_seed(1)
    np.random.default_rng()
    first, second, middle, name = data[0][3]
    assert first.shape == second.shape == middle.shape == (3, 32, 40)
    assert name == "000003"
    for one, two in zip(data[0][3][:3], data[1][3][:3], strict=True):
        assert torch.equal(one, two)
    others = [data[0][8], data[0][4], data[2][3]]  # the next epoch's 3, another index, another seed
    assert not any(torch.equal(middle, other[2]) for other in others)
    assert len(data[0]) == 5


def test_frames_stay_inside_the_photograph(folder):
    files = {path.stem: path for path in sorted(folder.glob("*.png"))}
    data = SyntheticMotion(files, (32, 40), 100, 20)
    corners = torch.tensor([[-20.0, -20, 19, 19], [-16, 15, -16, 15]])
    seen = 0
    for index in range(30):
        for layer in data.layers(np.random.default_rng(index)):
            for time in TIMES:
                origin = layer.motion.origin(time)
                place = layer.place[:, :2] @ (origin[:, :2] @ corners + origin[:, 2:]) + layer.place[:, 2:]
                assert place.min() >= 0
                assert (place.amax(1) <= torch.tensor([layer.image.shape[2], layer.image.shape[1]]) - 1).all()
                seen += 1
    assert seen >= 30 * 3 * 2


def test_no_layer_moves_further_than_it_may_and_few_move_far(folder):
    data = SyntheticMotion({"a": folder / "a.png"}, (16, 16), 100, 10)
    lengths = [
        math.hypot(*layer.motion.pan) for index in range(300) for layer in data.layers(np.random.default_rng(index))
    ]
    assert max(lengths) == pytest.approx(10, abs=0.05)
    assert 2 < np.median(lengths) < 5


def test_every_mask_has_an_inside_and_most_have_an_outside(folder):
    files = {path.stem: path for path in sorted(folder.glob("*.png"))}
    data = SyntheticMotion(files, (64, 64), 100, 20)
    y, x = torch.meshgrid(torch.arange(-32.0, 32), torch.arange(-32.0, 32), indexing="ij")
    shares = []
    for index in range(60):
        for layer in data.layers(np.random.default_rng(index))[1:]:
            cover = layer.mask(x, y)
            assert 0 <= cover.min() <= cover.max() <= 1
            shares.append(float(cover.mean()))
    assert 0.1 < np.mean(shares) < 0.5
    assert np.mean([0.01 < share < 0.99 for share in shares]) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_motion": 33}, "max_motion: expected 0 to 32 pixels, the frame's side, got 33"),
        ({"max_motion": -1}, "max_motion: expected 0 to 32 pixels"),
        ({"max_motion": 8, "seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_invalid_motion_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticMotion({"a": folder / "a.png"}, (32, 40), 5, **options)


def test_tiny_photographs_are_refused(tmp_path):
    write_noise(tmp_path, ("a",), 15, 40)
    with pytest.raises(ValueError, match=r"a.png: expected at least 16 pixels a side, got \(15, 40\)"):
        SyntheticMotion({"a": tmp_path / "a.png"}, (32, 40), 5, 8)


@pytest.mark.parametrize(
    ("first", "second", "between"),
    [
        ("frame9", "frame10", "frame9_5"),
        ("0001", "0002", "0001_5"),
        ("frame9", "frame9_5", "frame9_05"),
        ("frame9_5", "frame10", "frame9_5_5"),
        ("frame9_05", "frame9_5", "frame9_05_5"),
        ("a", "b", "a_5"),
    ],
)
def test_names_sort_between_their_neighbors(first, second, between):
    assert name_between(first, second) == between
    assert sorted([second, between, first], key=natural_key) == [first, between, second]


def test_names_without_a_name_between_them_are_refused():
    with pytest.raises(ValueError, match="frame names that allow a name between them, got 'a', 'a!'"):
        name_between("a", "a!")


def test_clips_are_folders_of_frames_in_natural_order(tmp_path):
    write_noise(tmp_path / "one", ("f9", "f10", "f11", "f100"))
    write_noise(tmp_path / "deep" / "two", ("1", "2", "3"))
    write_noise(tmp_path / "short", ("1", "2"))
    with pytest.warns(
        UserWarning, match=r"folder: 1 of 3 folders in '.*' left out, with fewer than 3 images: 'short'$"
    ):
        found = clips(tmp_path, 3)
    assert {clip: [path.stem for path in frames.values()] for clip, frames in found.items()} == {
        "deep/two": ["1", "2", "3"],
        "one": ["f9", "f10", "f11", "f100"],
    }
    triplets = clip_triplets(found["one"])
    assert [triplet.name for triplet in triplets] == ["one/f10", "one/f11"]
    assert [path.stem for path in triplets[0][1:]] == ["f9", "f10", "f11"]
    pairs = clip_pairs(clips(tmp_path, 2)["short"])
    assert [pair.name for pair in pairs] == ["short/1_5"]
    first, second, name = FramePairs(pairs)[0]
    assert torch.equal(first * 255, read_image(tmp_path / "short" / "1.png").float())
    assert torch.equal(second * 255, read_image(tmp_path / "short" / "2.png").float())
    assert name == "short/1_5"
    with pytest.raises(ValueError, match="expected folders of at least 5 consecutive frames .* got at most 4 images"):
        clips(tmp_path, 5)


def write_vimeo(root, train=("00001/0001", "00002/0001"), test=("00001/0002",)):
    for split, names in (("train", train), ("test", test)):
        for number, name in enumerate(names):
            write_noise(root / "sequences" / name, ("im1", "im2", "im3"), 40, 56, seed=number)
        (root / f"tri_{split}list.txt").write_text("\n".join([*names, "", ""]))
    return root


def test_vimeo_is_read_from_its_lists(tmp_path):
    root = write_vimeo(tmp_path)
    train = vimeo_triplets(root, "train")
    assert [triplet.name for triplet in train] == ["00001/0001", "00002/0001"]
    assert [triplet.name for triplet in vimeo_triplets(root, "test")] == ["00001/0002"]
    first, second, middle, name = FrameTriplets(train)[1]
    for frame, file in ((first, "im1"), (middle, "im2"), (second, "im3")):
        assert torch.equal(frame * 255, read_image(root / "sequences" / "00002" / "0001" / f"{file}.png").float())
    assert name == "00002/0001"


def test_vimeo_errors_name_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: expected Vimeo-90K's triplets with the file .*tri_trainlist"):
        vimeo_triplets(tmp_path, "train")
    root = write_vimeo(tmp_path)
    (root / "tri_trainlist.txt").write_text("00001/0001\n00001/0009\n00007/0001\n")
    with pytest.raises(FileNotFoundError, match=r"folders of 3 triplets .* 2 of them are missing, .* '00001/0009'"):
        vimeo_triplets(root, "train")
    (root / "tri_trainlist.txt").write_text("00001/../../secret")
    with pytest.raises(ValueError, match=r"expected lines such as 00001/0001, got '00001/../../secret'"):
        vimeo_triplets(root, "train")
    (root / "tri_testlist.txt").write_text("\n")
    with pytest.raises(ValueError, match="tri_testlist.txt: expected the names of triplets, got an empty list"):
        vimeo_triplets(root, "test")
    (root / "sequences" / "00001" / "0001" / "im2.png").unlink()
    (root / "tri_trainlist.txt").write_text("00001/0001")
    with pytest.raises(FileNotFoundError, match=r"im2.png: expected an image file, got no such file"):
        FrameTriplets(vimeo_triplets(root, "train"))[0]
    (root / "sequences").rename(root / "sequence")
    with pytest.raises(FileNotFoundError, match=r"with the folder '.*sequences', got no such folder"):
        vimeo_triplets(root, "train")


def write_middlebury(root):
    write_noise(root / "frames" / "Urban2", ("frame10", "frame11"))
    write_noise(root / "interp_gt" / "Urban2", ("frame10i11",), seed=1)
    write_noise(root / "frames" / "Venus", ("frame10", "frame11"))  # as it comes: without truth
    return root


def test_middlebury_has_the_scenes_with_a_true_middle_frame(tmp_path):
    root = write_middlebury(tmp_path)
    ((name, first, middle, second),) = middlebury_triplets(root)
    assert name == "Urban2"
    assert [path.name for path in (first, middle, second)] == ["frame10.png", "frame10i11.png", "frame11.png"]


def test_middlebury_errors_name_what_is_missing(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Middlebury's layout with the folder '.*interp_gt', got no such folder"
    ):
        middlebury_triplets(tmp_path)
    (tmp_path / "interp_gt").mkdir()
    (tmp_path / "frames").mkdir()
    with pytest.raises(ValueError, match="expected scenes with a true middle frame in .*interp_gt', got none"):
        middlebury_triplets(tmp_path)
    root = write_middlebury(tmp_path)
    (root / "frames" / "Urban2" / "frame11.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"both frames and the middle of every scene, got no '.*frame11.png'"):
        middlebury_triplets(root)


def test_crops_of_a_triplet_share_their_position_and_change_every_epoch(tmp_path):
    for number, value in enumerate((50, 100, 150)):  # the red channel tells the frames apart, the others the place
        y, x = np.mgrid[:40, :56].astype(np.uint8)
        Image.fromarray(np.stack([np.full_like(x, value), x, y], -1)).save(tmp_path / f"{number}.png")
    triplet = FrameTriplet("t", *(tmp_path / f"{number}.png" for number in range(3)))
    data, again = FrameTriplets([triplet], 16, seed=3), FrameTriplets([triplet], 16, seed=3)
    order, corners = set(), set()
    for epoch in range(40):
        first, second, middle, _ = (part * 255 if torch.is_tensor(part) else part for part in data[epoch])
        assert first.shape == (3, 16, 16)
        assert torch.equal(first[1:], middle[1:])
        assert torch.equal(second[1:], middle[1:])
        assert middle[0, 0, 0].round() == 100
        order.add((int(first[0, 0, 0].round()), int(second[0, 0, 0].round())))
        corners.add((int(middle[1, 0, 0].round()), int(middle[2, 0, 0].round())))
        assert torch.equal(again[epoch][2] * 255, middle)
    assert order == {(50, 150), (150, 50)}
    assert len(corners) > 30


def test_frames_of_unequal_size_are_refused(tmp_path):
    write_noise(tmp_path, ("a", "b"))
    write_noise(tmp_path, ("c",), 40, 70)
    triplet = FrameTriplet("t", *(tmp_path / f"{name}.png" for name in "abc"))
    with pytest.raises(ValueError, match=r"c.png: expected the size 49x70 of .*a.png, got 40x70"):
        FrameTriplets([triplet])[0]
    with pytest.raises(ValueError, match=r"c.png: expected the size 49x70 of .*a.png, got 40x70"):
        FramePairs([FramePair("t", tmp_path / "a.png", tmp_path / "c.png")])[0]
    same = FrameTriplet("t", *[tmp_path / "a.png"] * 3)
    with pytest.raises(ValueError, match="crop_size: expected at most the shorter side of every frame, got 50 for"):
        FrameTriplets([same], crop=50)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "video"}, r"layout: expected one of \('photographs', 'vimeo', 'clips'\), got 'video'"),
        ({"val_layout": "x", "val_folder": "."}, "val_layout: expected one of .*'middlebury'.*, got 'x'"),
        ({"layout": "vimeo", "folder": None}, "folder: expected the folder of the vimeo, got None"),
        ({"val_layout": "middlebury"}, "val_folder: expected the folder of val_layout 'middlebury', got None"),
        ({"val_folder": ".", "held_out": ["d"]}, "held_out: expected None with a val_folder"),
        ({"crop_size": 0}, "crop_size: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        (
            {"held_out": []},
            "held_out: expected names of photographs in .* to validate on, or a val_folder, got neither",
        ),
        ({"held_out": ["z"]}, "held_out: expected names among a, b, c, d, more/e, got 'z'"),
        (
            {"held_out": ["a", "b", "c", "d", "more/e"]},
            "held_out: expected to leave photographs to train on, got all 5",
        ),
        ({"max_motion": 64.0}, "max_motion: expected 0 to 32 pixels"),
    ],
)
def test_bad_arguments_are_refused(folder, arguments, message):
    options = {"folder": str(folder), "held_out": ["d"] if "val_folder" not in arguments else None, "crop_size": 32}
    with pytest.raises(ValueError, match=message):
        FrameInterpolationData(**{**options, **arguments}).setup("fit")


def test_bundled_photographs_are_the_default_and_one_is_held_out():
    data = FrameInterpolationData()
    data.setup("fit")
    photographs = bundled_photographs()
    astronaut = read_image(photographs["astronaut"])
    assert [torch.equal(image, astronaut) for image in data.val_data.images] == [True]
    assert len(data.train_data.images) == len(photographs) - 1
    assert not any(torch.equal(image, astronaut) for image in data.train_data.images)


def test_every_layout_trains_and_validates(tmp_path, folder):
    write_vimeo(tmp_path / "vimeo")
    write_noise(tmp_path / "clips" / "one", ("1", "2", "3", "4"))
    write_noise(tmp_path / "clips" / "two", ("1", "2", "3"))
    write_middlebury(tmp_path / "middlebury")
    small = {"crop_size": 32, "val_size": 48, "epoch_size": 4, "val_count": 3, "max_motion": 8}
    for options, train, val in (
        ({"folder": str(folder), "held_out": ["d"]}, ["000000", "000001", "000002", "000003"], 3),
        ({"layout": "vimeo", "folder": str(tmp_path / "vimeo")}, ["00001/0001", "00002/0001"], ["00001/0002"]),
        ({"layout": "clips", "folder": str(tmp_path / "clips"), "held_out": ["two"]}, ["one/2", "one/3"], ["two/2"]),
        ({"val_layout": "middlebury", "val_folder": str(tmp_path / "middlebury")}, 4, ["Urban2"]),
        ({"val_layout": "clips", "val_folder": str(tmp_path / "clips")}, 4, ["one/2", "one/3", "two/2"]),
        ({"val_layout": "vimeo", "val_folder": str(tmp_path / "vimeo")}, 4, ["00001/0002"]),
        ({"val_folder": str(folder)}, 4, 3),
    ):
        data = FrameInterpolationData(**options, **small)
        data.setup("fit")
        for loader, expected in ((data.train_dataloader(), train), (data.val_dataloader(), val)):
            names = [name for batch in loader for name in batch[-1]]
            assert sorted(names) == expected if isinstance(expected, list) else len(names) == expected
        assert next(iter(data.train_dataloader()))[0].shape[1:] == (3, 32, 32)


def test_epochs_and_ranks_draw_unique_samples(folder):
    data = FrameInterpolationData(folder=str(folder), held_out=["d"], epoch_size=6, batch_size=2, max_motion=8)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([name for batch in loader for name in batch[-1]])
    assert sorted(epochs[0]) == [f"{number:06d}" for number in range(6)]
    assert sorted(epochs[1]) == [f"{number:06d}" for number in range(6, 12)]
    assert epochs[0] != sorted(epochs[0])

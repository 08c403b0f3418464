"""Motion blur: means of frames, synthetic motion, clips, pairs; the data module of the deblurring recipe."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_noise

from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes import held_out
from lpips_lightning.recipes.deblurring_data import DeblurringData
from lpips_lightning.recipes.motion_blur import (
    Blurred,
    BlurredFiles,
    SyntheticBlur,
    blurred_pairs,
    camera_path,
    mean_of_frames,
    windows,
)
from lpips_lightning.recipes.photographs import bundled_photographs
from lpips_lightning.recipes.synthetic_motion import TIMES, Layer, Motion, SyntheticMotion, render

STILL = torch.tensor([[1.0, 0.0, 40.0], [0.0, 1.0, 30.0]])  # the frame's middle is pixel (40, 30) of the image


@pytest.fixture
def folder(tmp_path):
    return write_noise(tmp_path / "images")


def write_flat(folder, values):
    """Frames of one value each, ``0.png``, ``1.png``, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(folder / f"{number}.png")
    return folder


def pixels(image):
    return (image * 255).round().int()


@pytest.mark.parametrize(
    ("values", "gamma", "expected"),
    [
        ([0, 255], 1.0, 128),
        ([0, 255], 2.2, 186),  # 255 * 0.5 ** (1 / 2.2)
        ([10, 20, 60], 1.0, 30),
        ([10, 20, 60], 2.2, 38),  # ((10 ** 2.2 + 20 ** 2.2 + 60 ** 2.2) / 3) ** (1 / 2.2) = 38.3
        ([77] * 7, 2.2, 77),
    ],
)
def test_the_mean_of_frames_is_taken_in_its_domain(values, gamma, expected):
    frames = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 255
    assert (pixels(mean_of_frames(frames, gamma)) == expected).all()
    assert expected == round(float(np.mean(np.array(values, float) ** gamma) ** (1 / gamma)) + 1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.2])
def test_equal_frames_are_not_blurred(gamma):
    frames = (torch.arange(256) / 255).expand(5, 3, 1, -1)
    assert torch.equal(mean_of_frames(frames, gamma), frames[0])


def test_frames_at_other_times_leave_those_of_frame_interpolation_unchanged(folder):
    files = {path.stem: path for path in sorted(folder.glob("*.png"))}
    data = SyntheticMotion(files, (32, 40), 5, 8)
    layers = data.layers(np.random.default_rng([0, 0, 3]))
    three = render(layers, (32, 40))
    assert all(torch.equal(one, two) for one, two in zip(three, (data[3][0], data[3][2], data[3][1]), strict=True))
    many = render(layers, (32, 40), (-0.5, -0.2, 0.0, 0.4, 0.5))
    assert many.shape == (5, 3, 32, 40)
    assert torch.equal(many[[0, 2, 4]], three)
    # Recorded before there were other times.
    assert pixels(three).sum((1, 2, 3)).tolist() == pytest.approx([490279, 488580, 487441], abs=3)


def test_a_path_is_added_to_the_motion_along_straight_lines():
    steady = Motion((6.0, -2.0), turn=0.2, zoom=0.1, pivot=(5.0, 3.0))
    path = ((-4.0, 2.0), (-1.0, 0.0), (0.0, 0.0), (0.0, 3.0), (5.0, 3.0))
    shaken = steady._replace(path=path)
    for time, (right, down) in ((-0.5, path[0]), (-0.25, path[1]), (0.0, path[2]), (0.5, path[4]), (0.375, (2.5, 3.0))):
        points = torch.tensor([[0.0, 5.0, -7.0], [0.0, 3.0, 9.0]])
        forward = torch.inverse(torch.cat([steady.origin(time), torch.tensor([[0.0, 0.0, 1.0]])]))
        moved = forward[:2, :2] @ points + forward[:2, 2:] + torch.tensor([[right], [down]])
        origin = shaken.origin(time)
        assert torch.allclose(origin[:, :2] @ moved + origin[:, 2:], points, atol=1e-5)


def test_a_known_path_gives_a_known_blur():
    image = torch.zeros(3, 60, 80)
    image[:, 30, 40] = 1.0  # a light in the middle
    path = ((-2.0, 0.0), (0.0, 0.0), (0.0, 2.0))  # from the left to the middle, then down
    frames = render([Layer(image, STILL, Motion(path=path))], (9, 9), (-0.5, -0.25, 0.0, 0.25, 0.5))
    assert frames[2, 0, 4, 4] == 1
    trace = torch.zeros(9, 9)
    for x, y in ((2, 4), (3, 4), (4, 4), (4, 5), (4, 6)):
        trace[y, x] = 0.2
    assert torch.allclose(mean_of_frames(frames, 1.0), trace.expand(3, -1, -1), atol=1e-6)


def test_camera_paths_are_curved_and_no_longer_than_allowed():
    lengths, bends = [], []
    for seed in range(200):
        path = np.array(camera_path(np.random.default_rng(seed), 8.0))
        assert tuple(path[2]) == (0, 0)
        steps = np.diff(path, axis=0)
        lengths.append(np.hypot(*steps.T).sum())
        first, last = np.arctan2(steps[[0, -1], 1], steps[[0, -1], 0])
        bends.append(abs(math.sin(last - first)))
    assert 7 < max(lengths) <= 8 + 1e-6
    assert np.mean(lengths) == pytest.approx(4, abs=0.5)
    assert np.mean(np.array(bends) > 0.3) > 0.5


def test_rotation_and_scaling_move_no_corner_further_than_allowed(folder):
    data = SyntheticBlur({"a": folder / "a.png"}, (64, 96), 100, max_motion=4, max_shake=0)
    corners = torch.tensor([[-48.0, -48, 47, 47], [-32, 31, -32, 31]])
    moved = []
    for index in range(100):
        for layer in data.scenes.layers(np.random.default_rng(index)):
            motion = data._limited(layer.motion)
            assert motion.pan == layer.motion.pan and motion.pivot == layer.motion.pivot
            still = motion._replace(pan=(0.0, 0.0))
            ends = [still.origin(time)[:, :2] @ corners + still.origin(time)[:, 2:] for time in (-0.5, 0.5)]
            moved.append(float((ends[0] - ends[1]).norm(dim=0).max()))
    assert 3.5 < max(moved) < 4.2


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_a_synthetic_sample_is_the_mean_of_its_frames_and_the_middle_one(folder, gamma, monkeypatch):
    from lpips_lightning.recipes import motion_blur

    kept = []
    monkeypatch.setattr(motion_blur, "render", lambda *args: kept.append(render(*args)) or kept[-1])
    data = SyntheticBlur({"a": folder / "a.png"}, (32, 40), 5, 5, gamma, 6, 6)
    blurred, sharp, name = data[3]
    (frames,) = kept
    assert frames.shape == (5, 3, 32, 40) and name == "000003"
    assert torch.equal(sharp, frames[2])
    expected = np.mean(frames.double().numpy() ** gamma, 0) ** (1 / gamma) * 255
    assert np.abs(pixels(blurred).numpy() - expected).max() <= 0.5 + 1e-3
    assert not torch.equal(blurred, sharp)


def test_synthetic_samples_depend_only_on_seed_epoch_and_index(folder):
    files = {path.stem: path for path in sorted(folder.glob("*.png"))}
    data = [SyntheticBlur(files, (32, 40), 5, seed=seed) for seed in (0, 0, 1)]
    torch.manual_seed(1)
    for one, two in zip(data[0][3][:2], data[1][3][:2], strict=True):
        assert torch.equal(one, two)
    others = [data[0][8], data[0][4], data[2][3]]  # the next epoch's 3, another index, another seed
    assert not any(torch.equal(data[0][3][1], other[1]) for other in others)
    assert len(data[0]) == 5


def test_shaken_frames_stay_inside_the_photograph(folder):
    data = SyntheticBlur({"a": folder / "a.png"}, (16, 20), 100, max_motion=6, max_shake=10)
    corners = torch.tensor([[-10.0, -10, 9, 9], [-8, 7, -8, 7]])
    for index in range(20):
        generator = np.random.default_rng(index)
        for layer in data.scenes.layers(generator):
            motion = layer.motion._replace(path=camera_path(generator, 10))
            for time in TIMES:
                origin = motion.origin(time)
                place = layer.place[:, :2] @ (origin[:, :2] @ corners + origin[:, 2:]) + layer.place[:, 2:]
                # Turned and zoomed paths reach a little further.
                assert place.min() >= -1
                assert (place.amax(1) <= torch.tensor([layer.image.shape[2], layer.image.shape[1]])).all()


@pytest.mark.parametrize(("frames", "step", "middles"), [(3, 1, "12345"), (3, 3, "14"), (5, 1, "234"), (7, 7, "3")])
def test_windows_are_named_after_their_middle_frame(tmp_path, frames, step, middles):
    clip = {f"c/{number}": tmp_path / f"{number}.png" for number in range(7)}
    found = windows(clip, frames, step)
    assert [one.name for one in found] == [f"c/{middle}" for middle in middles]
    for one in found:
        middle = int(one.sharp.stem)
        assert [int(path.stem) for path in one.frames] == list(range(middle - frames // 2, middle + frames // 2 + 1))


def test_a_window_of_files_is_their_mean_and_the_middle_one(tmp_path):
    clip = write_flat(tmp_path, [0, 50, 100, 150, 255])
    window = Blurred("2", tuple(clip / f"{number}.png" for number in range(5)), clip / "2.png")
    for gamma in (1.0, 2.2):
        blurred, sharp, name = BlurredFiles([window], gamma=gamma)[0]
        mean = np.mean(np.array([0, 50, 100, 150, 255.0]) ** gamma) ** (1 / gamma)
        assert (pixels(blurred) == round(mean)).all()
        assert (pixels(sharp) == 100).all() and name == "2"


def write_pairs(root, sequences, blur="blur", sharp="sharp"):
    """Pairs ``1`` and ``2`` of every sequence; sharp ones are darker."""
    for sequence in sequences:
        for number in (1, 2):
            for kind, value in ((blur, 100 + number), (sharp, 50 + number)):
                path = root / sequence.format(kind) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((40, 44, 3), value, np.uint8)).save(path)
    return root


@pytest.mark.parametrize(
    ("sequences", "kinds", "expected"),
    [
        (["train/G1/{}", "test/G2/{}"], ("blur", "sharp"), ["train/G1", "test/G2"]),  # GoPro
        (["{}/000", "{}/001"], ("train_blur", "train_sharp"), ["000", "001"]),  # REDS
        (["{}"], ("blur", "sharp"), ["1", "2"]),
        (["{}", "more/{}"], ("blur", "sharp"), [".", "more"]),
    ],
)
def test_pairs_have_equal_names_in_blur_and_sharp(tmp_path, sequences, kinds, expected):
    root = write_pairs(tmp_path, sequences, *kinds)
    write_flat(tmp_path / "train" / "G1" / "blur_gamma", [1])  # other folders are no pairs
    found = blurred_pairs(root)
    assert sorted(found) == sorted(expected)
    for pairs in found.values():
        for index, one in enumerate(pairs):
            blurred, sharp, _ = BlurredFiles(pairs)[index]
            number = int(one.name.rpartition("/")[2])
            assert (pixels(blurred) == 100 + number).all() and (pixels(sharp) == 50 + number).all()
    names = [pair.name for pairs in found.values() for pair in pairs]
    assert len(set(names)) == len(names) and not any("blur" in name for name in names)


def test_a_sequence_at_the_top_of_the_folder_can_be_held_out(tmp_path):
    folder = str(write_pairs(tmp_path, ["{}", "more/{}"]))
    train, rest = DeblurringData("pairs", folder).split()
    assert {*train, *rest} == {".", "more"}
    assert list(DeblurringData("pairs", folder, held_out=["."]).split()[1]) == ["."]


def test_errors_about_pairs_name_what_is_missing(tmp_path, folder):
    with pytest.raises(ValueError, match=r"folders 'blur' and 'sharp' .* got 5 images elsewhere; .* use layout clips"):
        blurred_pairs(folder)
    write_pairs(tmp_path / "pairs", ["a/{}"])
    (tmp_path / "pairs" / "a" / "sharp" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"blur/2.png: expected its sharp image 'a/sharp/2' in '.*pairs', got"):
        blurred_pairs(tmp_path / "pairs")


def test_crops_share_their_position_and_change_every_epoch(tmp_path):
    y, x = np.mgrid[:40, :56].astype(np.uint8)
    for number, value in enumerate((50, 100, 150)):  # red tells the frames apart, the others the place
        Image.fromarray(np.stack([np.full_like(x, value), x, y], -1)).save(tmp_path / f"{number}.png")
    files = tuple(tmp_path / f"{number}.png" for number in range(3))
    data, again = (BlurredFiles([Blurred("t", files, files[1])], 16, 1.0, seed=3) for _ in range(2))
    seen = set()
    for epoch in range(40):
        blurred, sharp, _ = data[epoch]
        assert blurred.shape == sharp.shape == (3, 16, 16)
        assert torch.equal(pixels(blurred), pixels(sharp))  # the middle frame is the mean
        assert torch.equal(again[epoch][0], blurred)
        seen.add(tuple(pixels(sharp)[1:, 0, 0].tolist()))
    assert len(seen) > 30
    with pytest.raises(ValueError, match="crop_size: expected at most the shorter side of every image, got 41 for"):
        BlurredFiles([Blurred("t", files, files[1])], 41)[0]


def test_images_of_unequal_size_are_refused(tmp_path):
    write_noise(tmp_path, ("a", "b"))
    write_noise(tmp_path, ("c",), 40, 70)
    pair = Blurred("t", (tmp_path / "a.png",), tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c.png: expected the size 49x70 of .*a.png, got 40x70"):
        BlurredFiles([pair])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "video"}, r"layout: expected one of \('photographs', 'clips', 'pairs'\), got 'video'"),
        ({"val_layout": "x", "val_folder": "."}, "val_layout: expected one of .*'pairs'.*, got 'x'"),
        ({"layout": "pairs", "folder": None}, "folder: expected the folder of the pairs, got None"),
        ({"val_layout": "clips"}, "val_folder: expected the folder of val_layout 'clips', got None"),
        ({"val_folder": ".", "held_out": ["d"]}, "held_out: expected None with a val_folder"),
        ({"frames": 4}, "frames: expected an odd number of at least 3, which has a middle frame, got 4"),
        ({"frames": 1}, "frames: expected an odd number of at least 3, which has a middle frame, got 1"),
        ({"gamma": 0.0}, "gamma: expected more than 0, such as 2.2; 1 is the mean of pixel values; got 0"),
        ({"gamma": math.nan}, "gamma: expected more than 0"),
        ({"crop_size": 0}, "crop_size: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"held_out": ["z"]}, "held_out: expected names among a, b, c, d, more/e, got 'z'"),
        ({"max_motion": 64.0}, "max_motion: expected 0 to 32 pixels, the image's side, got 64"),
        ({"max_shake": -1.0}, "max_shake: expected 0 to 32 pixels, the image's side, got -1"),
        ({"layout": "clips", "frames": 9}, "expected folders of at least 9 consecutive frames .* at most 4 images"),
    ],
)
def test_bad_arguments_are_refused(folder, arguments, message):
    options = {"folder": str(folder), "held_out": ["d"] if "val_folder" not in arguments else None, "crop_size": 32}
    with pytest.raises(ValueError, match=message):
        DeblurringData(**{**options, **arguments}).setup("fit")


def test_bundled_photographs_are_the_default_and_one_is_held_out():
    data = DeblurringData()
    data.setup("fit")
    astronaut = read_image(bundled_photographs()["astronaut"])
    assert [torch.equal(image, astronaut) for image in data.val_data.scenes.images] == [True]
    assert len(data.train_data.scenes.images) == len(bundled_photographs()) - 1
    assert not any(torch.equal(image, astronaut) for image in data.train_data.scenes.images)


def test_every_layout_trains_and_validates(tmp_path, folder):
    write_noise(tmp_path / "clips" / "one", "1234567", 40, 44)
    write_noise(tmp_path / "clips" / "two", "123", 40, 44)
    gopro = write_pairs(tmp_path / "gopro", ["train/G1/{}", "test/G2/{}"])
    flat = write_pairs(tmp_path / "flat", ["{}"])
    small = {"frames": 3, "crop_size": 32, "val_size": 48, "epoch_size": 4, "val_count": 3, "batch_size": 2}
    clips, windowed = str(tmp_path / "clips"), [f"one/{middle}" for middle in "23456"]
    for options, train, val in (
        ({"folder": str(folder), "held_out": ["d"]}, 4, 3),
        ({"layout": "clips", "folder": clips, "held_out": ["two"]}, windowed, ["two/2"]),
        ({"layout": "pairs", "folder": str(gopro)}, ["train/G1/1", "train/G1/2"], ["test/G2/1", "test/G2/2"]),
        (
            {"layout": "pairs", "folder": str(gopro), "held_out": ["train/G1"]},
            ["test/G2/1", "test/G2/2"],
            ["train/G1/1", "train/G1/2"],
        ),
        ({"layout": "pairs", "folder": str(flat), "held_out": ["2"]}, ["1"], ["2"]),
        ({"folder": str(folder), "val_layout": "clips", "val_folder": clips}, 4, ["one/2", "one/5", "two/2"]),
        ({"folder": str(folder), "val_layout": "pairs", "val_folder": str(flat)}, 4, ["1", "2"]),
        ({"folder": str(folder), "val_folder": str(folder)}, 4, 3),
    ):
        data = DeblurringData(**options, **small)
        data.setup("fit")
        for loader, expected in ((data.train_dataloader(), train), (data.val_dataloader(), val)):
            names = [name for batch in loader for name in batch[-1]]
            assert sorted(names) == expected if isinstance(expected, list) else len(names) == expected
        blurred, sharp, _ = next(iter(data.train_dataloader()))
        assert blurred.shape[1:] == sharp.shape[1:] == (3, 32, 32)


def test_clips_are_held_out_as_a_whole_and_recorded(tmp_path, capsys):
    for clip in "abc":
        write_noise(tmp_path / clip, "12345", 40, 44)
    data = DeblurringData("clips", str(tmp_path), frames=3, crop_size=32)
    data.setup("fit")
    data.train_dataloader()
    (name,) = data._choice.names
    assert f"1 of 3 clips in '{tmp_path}': {name}; choose with --data.held_out" in capsys.readouterr().out
    assert {one.name[0] for one in data.val_data.files} == {name}
    assert {one.name[0] for one in data.train_data.files} == set("abc") - {name}
    other = next(clip for clip in "abc" if clip != name)
    again = DeblurringData("clips", str(tmp_path), frames=3, crop_size=32)
    again.setup("fit")
    again.load_state_dict({"names": [other], "excluded": []})
    held_out._announced.clear()
    assert {one.name[0] for one in again.val_data.files} == {other}


def test_blurred_images_of_any_size_are_predicted(tmp_path):
    write_noise(tmp_path, ("a",), 17, 33)
    write_noise(tmp_path, ("b",), 1, 2)
    data = DeblurringData(predict_folder=str(tmp_path))
    data.setup("predict")
    shapes = {names[0]: tuple(image.shape) for image, names in data.predict_dataloader()}
    assert shapes == {"a": (1, 3, 17, 33), "b": (1, 3, 1, 2)}


def test_epochs_draw_new_samples(folder):
    data = DeblurringData(folder=str(folder), held_out=["d"], epoch_size=6, batch_size=2, crop_size=16, frames=3)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(sorted(name for batch in loader for name in batch[-1]))
    assert epochs == [[f"{number:06d}" for number in range(6)], [f"{number:06d}" for number in range(6, 12)]]

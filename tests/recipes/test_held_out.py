"""Held-out images: chosen, automatic, or those of the checkpoint; in every recipe."""

import numpy as np
import pytest
from PIL import Image

from lpips_lightning.recipes import held_out
from lpips_lightning.recipes.colorization_data import ColorizationData
from lpips_lightning.recipes.deblurring_data import DeblurringData
from lpips_lightning.recipes.distillation_data import DistillationData
from lpips_lightning.recipes.frame_interpolation_data import FrameInterpolationData
from lpips_lightning.recipes.held_out import HeldOut, automatic_split, scenes, select
from lpips_lightning.recipes.superresolution_data import SuperResolutionData
from tests._helpers.small_data import write_noise
from tests._helpers.small_recipes import RECIPES

pytestmark = [
    # 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: noise for a few images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-28, pytorch_lightning/callbacks/model_checkpoint.py: a second run has a folder of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def numbered(count):
    return {f"image{index:04d}": index for index in range(count)}


def write(folder, names, sizes=((20, 30),)):
    """Images in turn of these sizes."""
    files = {}
    for index, name in enumerate(names):
        files[name] = folder / f"{name}.png"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*sizes[index % len(sizes)], 3), np.uint8)).save(files[name])
    return files


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (10, 1), (24, 3), (100, 10), (1000, 20)])
def test_about_a_tenth_is_held_out_at_most_twenty_in_any_order(count, expected):
    parts = numbered(count)
    names, validated = automatic_split(parts)
    assert len(names) == expected and validated == names
    assert names == [name for name in parts if name in names]
    assert set(automatic_split(dict(reversed(parts.items())))[0]) == set(names)


def test_added_files_change_little_and_never_all():
    before, after = automatic_split(numbered(100))[0], automatic_split(numbered(110))[0]
    assert len(set(before) - set(after)) <= 2


def test_frames_of_a_clip_stay_together(tmp_path):
    files = write(tmp_path, [f"{clip}/{frame:03d}" for clip in ("beach", "car", "dog") for frame in range(7, 47)])
    assert set(scenes(files)) == {"beach/", "car/", "dog/"}
    names, validated = automatic_split(files)
    clip = names[0].partition("/")[0]
    assert names == [name for name in files if name.startswith(f"{clip}/")] and len(names) == 40
    assert validated == names[::2]  # evenly spaced
    train, val = HeldOut(None).split(files, str(tmp_path))
    assert set(train) == files.keys() - set(names) and list(val) == validated


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ([f"Kodak/kodim{index:02d}" for index in range(1, 25)], ((20, 30), (20, 30), (30, 20))),  # of two sizes
        ([f"Set/{name}" for name in ("baby", "bird", "head")] + [f"more/{name}" for name in "abc"], ((20, 30),)),
        ([f"{index}" for index in range(12)], ((20, 30),)),  # in no subfolder
        ([f"one/{index}" for index in range(12)], ((20, 30),)),  # a clip alone: somebody has to be held out
        ([f"one/{index}" for index in range(0, 24, 2)] + ["other/x"], ((20, 30),)),  # gaps between the numbers
    ],
)
def test_images_side_by_side_are_no_scene(names, sizes, tmp_path):
    files = write(tmp_path, names, sizes)
    assert scenes(files) == {name: [name] for name in names}


def test_many_small_folders_are_scenes(tmp_path):
    files = write(tmp_path, [f"scene{index}/{view}" for index in range(12) for view in ("left", "right")])
    names, _ = automatic_split(files)
    assert len(names) == 2 and len({name.partition("/")[0] for name in names}) == 1


def test_a_single_image_is_refused_with_a_way_out():
    with pytest.raises(
        ValueError, match=r"at least two images in 'x', one of them .*, got 1; add some, or pass a val_f"
    ):
        HeldOut(None).split({"a": 0}, "x")


def test_unknown_name_is_refused_with_the_known_ones():
    images = dict.fromkeys("abcdefghij")
    assert list(select(images, ["b", "a"], "held_out")) == ["b", "a"]
    with pytest.raises(ValueError, match=r"held_out: expected names among a, b, c, d, e, f, g, h, \.\.\., got 'z'"):
        select(images, ["z"], "held_out")


def test_the_split_of_a_checkpoint_is_used_unless_another_is_chosen_or_the_images_are_others():
    first = HeldOut(None)
    first.split(numbered(24), "x")
    state = first.state_dict()
    second = HeldOut(None)
    second.split({"new": 0, **numbered(200)}, "x")
    assert second.load_state_dict(state)  # is to be split again
    train, val = second.split({"new": 0, **numbered(200)}, "x")
    assert list(val) == state["names"] and len(train) == 198
    assert not second.load_state_dict(state)
    chosen = HeldOut(["new"])
    chosen.split({"new": 0, **numbered(24)}, "x")
    assert not chosen.load_state_dict(state)
    other = HeldOut(None)
    other.load_state_dict(state)
    assert other.split(dict.fromkeys("abc"), "y")[1].keys() == set(automatic_split(dict.fromkeys("abc"))[0])


def of(data):
    """Names of the training and of the validation images of a data module."""
    if isinstance(data, DistillationData):
        return set(data.trained_on), set(data.validated_on)
    if isinstance(data, FrameInterpolationData):
        parts = data._split()
        return {*parts[0]}, {*parts[1]}
    return {*data.split()[0]}, {*data.split()[1]}


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: SuperResolutionData(folder, crop_size=32, val_crop_size=32),
        lambda folder: ColorizationData(folder, crop_size=32, working_size=40),
        lambda folder: FrameInterpolationData(folder=folder, crop_size=32, val_size=32),
        lambda folder: FrameInterpolationData("clips", folder=folder, crop_size=32),
        lambda folder: DeblurringData(folder=folder, crop_size=32, val_size=32),
        lambda folder: DeblurringData("clips", folder=folder, crop_size=32, frames=3),
        lambda folder: DistillationData(folder, public_domain=False, sizes={32: 2}, val_groups=2, batch_size=2),
        lambda folder: DistillationData([folder], sizes={32: 2}, val_groups=2, batch_size=2),
    ],
    ids=[
        "superresolution",
        "colorization",
        "photographs",
        "clips",
        "blurred photographs",
        "blurred clips",
        "distillation",
        "with public domain",
    ],
)
def test_every_data_module_splits_a_folder_and_says_so_once(make, tmp_path, capsys):
    folder = write_noise(tmp_path / "images", [f"{clip}/{frame}" for clip in "abc" for frame in range(3)])
    for _ in range(2):
        data = make(str(folder))
        data.setup("fit")
        data.train_dataloader()
        data.val_dataloader()
    train, val = of(data)
    assert train and val and not train & val
    assert {name.partition("/")[0] for name in val} < set("abc")  # one clip; with clips, its name
    out, _ = capsys.readouterr()
    assert out.count("Held out for validation: ") == 1
    assert f" in '{folder}': {', '.join(sorted(val))}; choose with --data.held_out" in out


def test_distillation_holds_out_the_users_images_and_none_on_request(tmp_path):
    folder = write_noise(tmp_path / "images")
    data = DistillationData(str(folder))
    data.setup("fit")
    assert set(data.validated_on) < {"a", "b", "c", "d", "more/e"} and "astronaut" in data.trained_on
    data = DistillationData(str(folder), held_out=[])
    data.setup("fit")
    assert not data.validated_on and {"a", "more/e", "astronaut"} < set(data.trained_on)


@pytest.mark.parametrize("recipe", RECIPES[:1], ids=["superresolution"])
def test_test_and_resumed_runs_use_the_split_of_the_checkpoint(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_noise("images", [f"image{index}" for index in range(4)])
    recipe = recipe._replace(options=recipe.options.replace(" --data.held_out=[c,d,more/e]", ""))
    recipe.run("fit")
    said = capsys.readouterr().out
    (name,) = automatic_split(dict.fromkeys(f"image{index}" for index in range(4)))[0]
    assert f"1 of 4 images in 'images': {name}; choose with" in said
    more = {f"{letter}{index}" for letter in "abc" for index in range(8)}
    write_noise("images", more, seed=1)
    checkpoint = f"--ckpt_path={next(tmp_path.glob('outputs/**/last.ckpt'))}"
    for subcommand, longer in (("test", []), ("fit", ["--trainer.max_epochs=3"])):
        held_out._announced.clear()  # as in another process
        recipe.run(subcommand, checkpoint, *longer)
        assert f"1 of 28 images in 'images': {name}; as in the checkpoint" in capsys.readouterr().out

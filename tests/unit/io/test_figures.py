import matplotlib
import pytest
import torch
from _helpers.figure_layout import layout_faults
from PIL import Image

from lpips_lightning.io.figures import (
    WIDTHS,
    category_styles,
    new_figure,
    require_matplotlib,
    save_figure,
    shorten,
    shorten_all,
)
from lpips_lightning.io.heatmap import heatmap_limit


@pytest.mark.parametrize("width", WIDTHS)
def test_a_figure_has_its_width_and_a_pdf_beside_it(tmp_path, width):
    settings = dict(matplotlib.rcParams)
    with new_figure(width, 1.5) as figure:
        figure.subplots().set(xlabel="a name with $ and _", title="_title")
        files = save_figure(figure, tmp_path / "a.png", {"fingerprint": "net"})
    assert files == [tmp_path / "a.png", tmp_path / "a.pdf"]
    with Image.open(files[0]) as image:
        assert image.size == (round(300 * WIDTHS[width]), 450)
        assert image.info["fingerprint"] == "net"
    assert files[1].read_bytes().startswith(b"%PDF") and b"fingerprint: net" in files[1].read_bytes()
    assert dict(matplotlib.rcParams) == settings


def test_the_files_are_named_by_the_stem(tmp_path):
    with new_figure("column", 1) as figure:
        assert [file.name for file in save_figure(figure, tmp_path / "b.pdf")] == ["b.png", "b.pdf"]
        assert [file.name for file in save_figure(figure, tmp_path / "v1.2")] == ["v1.2.png", "v1.2.pdf"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lpips_lightning.io.figures.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"X needs matplotlib, .* pip install \"lpips_lightning\[recipes\]\""):
        require_matplotlib("X needs")


def test_up_to_49_categories_look_different():
    styles = category_styles(49)
    assert len({(style.color, style.marker) for style in styles}) == 49
    assert len({(style.color, style.hatch) for style in styles}) == 49
    assert styles[:3] == category_styles(3)


def test_long_names_keep_both_ends():
    assert shorten("short", 8) == "short"
    assert shorten("a" * 9 + "xyz", 7) == "aaa\u2026xyz"
    assert len(shorten("b" * 99, 20)) == 20
    names = [f"{'n' * 30}{i}{'m' * 30}" for i in range(12)]
    short = shorten_all(names, 16)
    assert len(set(short)) == 12 and max(map(len, short)) <= 16


@pytest.mark.parametrize(
    ("value", "limit"), [(0.05, 0.05), (0.86, 1), (0.011, 0.015), (1.0, 1), (1.2, 1.5), (3.2, 5), (0.0, 0.001)]
)
def test_the_color_scale_ends_at_a_round_number_above_the_values(value, limit):
    maps = torch.full((1, 8, 8), value), torch.full((4, 4), value / 2)
    assert heatmap_limit(*maps) == limit


def test_outliers_and_nan_do_not_set_the_color_scale():
    values = torch.full((100, 100), 0.02)
    values[0, 0], values[0, 1], values[0, 2] = 9, float("nan"), float("inf")
    assert heatmap_limit(values) == 0.02
    assert heatmap_limit(torch.full((3,), float("nan"))) == heatmap_limit() == 0.001


def test_layout_faults_are_found():
    with new_figure("column", 2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1])
        assert layout_faults(figure) == []
        figure.text(0.9, 0.5, "a text that is cut off", fontsize=8)
        axes.text(0.5, 0.5, "one", fontsize=8)
        axes.text(0.5, 0.52, "two", fontsize=6)
        faults = "\n".join(layout_faults(figure))
    assert "leaves the canvas" in faults and "'one' overlaps 'two'" in faults and "6.0 points" in faults
    with new_figure("column", 2) as figure:
        figure.set_figwidth(9)
        assert layout_faults(figure) == ["width 9.0 inches"]

import matplotlib
import numpy as np
import pytest
import torch
from _helpers.figure_layout import layout_faults
from PIL import Image

from lpips_lightning.io import figures
from lpips_lightning.io.figures import (
    WIDTHS,
    category_styles,
    figure_pixels,
    fit_name,
    fit_names,
    label_points,
    new_figure,
    require_matplotlib,
    save_figure,
    shorten,
    shorten_all,
    text_inches,
    value_limits,
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


def test_settings_of_the_process_change_nothing():
    def draw():
        inches = text_inches("a name")
        with new_figure("column", 1.5) as figure:
            figure.subplots().plot([0, 1], [1, 0])
            figure.suptitle(fit_name("a name that is too long for its place", 1.0))
            return inches, figure_pixels(figure)

    inches, pixels = draw()
    figures._advance.cache_clear()
    figures._font.cache_clear()
    own = {"font.weight": "bold", "axes.grid": True, "figure.facecolor": "pink", "text.color": "red", "xtick.top": True}
    with matplotlib.rc_context(own):
        measured, drawn = draw()
        assert {name: matplotlib.rcParams[name] for name in own} == own
    assert measured == inches and np.array_equal(drawn, pixels)


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


def test_names_that_differ_in_the_middle_are_cut_around_it():
    names = [f"{'n' * 30}{i:02d}{'m' * 30}" for i in range(12)]
    assert shorten_all([*names, "other"], 10)[10:] == ["\u2026nnn10mmm\u2026", "\u2026nnn11mmm\u2026", "other"]
    assert shorten_all(["same" * 9] * 2, 12) == ["same\u2026same #1", "same\u2026same #2"]


def test_characters_without_a_glyph_are_escaped():
    assert shorten("a\u540d\u00e9\u0416\n", 40) == "a\\u540d\u00e9\u0416\\n"


def test_names_fit_a_width():
    names = ["W" * 60, "i" * 60, "short"]
    fitted = fit_names(names, 1.0)
    assert fitted[2] == "short" and max(map(text_inches, fitted)) <= 1.0
    assert max(map(len, fitted)) < 20
    assert text_inches(fit_name("i" * 60, 1.0, 9), 9) <= 1.0 < text_inches(fit_name("i" * 60, 1.0) + "iii")
    assert fit_names([], 1.0) == []
    with new_figure("column", 1) as figure:
        width = figure.text(0, 0, "a typical text, 73.9 %", fontsize=7).get_window_extent().width / 300
    assert text_inches("a typical text, 73.9 %") == pytest.approx(width, rel=0.02)


def test_axes_end_where_values_can_be():
    assert value_limits([70, 80]) == (69, 81)
    assert value_limits([0.5, 99.9, float("nan")]) == (0, 100)
    assert value_limits([0.5], most=1) == (0.49, 0.51)
    assert value_limits([20, 30], 0.1, float("inf")) == (19, 31)
    assert value_limits([]) == (0, 100)


def test_points_are_labelled_where_no_text_overlaps_or_not_at_all():
    with new_figure("column", 2.5) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        points = [(0, 0), (0.5, 0.5), (0.52, 0.5), (1, 1)]
        assert label_points(axes, points, ["corner", "left", "right", "end"])
        assert layout_faults(figure) == []
        assert [text.get_text() for text in axes.texts] == ["corner", "left", "right", "end"]
        assert not label_points(axes, [(0.5, 0.5)] * 30, ["name"] * 30)
        assert len(axes.texts) == 4


def test_pixels_are_those_of_the_png(tmp_path):
    with new_figure("column", 1) as figure:
        figure.subplots().plot([0, 1], [1, 0])
        pixels = figure_pixels(figure)
        with Image.open(save_figure(figure, tmp_path / "a.png")[0]) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


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

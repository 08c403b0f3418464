"""The scores of the paper's Table 5, for comparison.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924v2, Table 5:
2AFC scores in per cent on the validation sets of BAPPS. On the released data the human row is 80.84, 84.35, 73.60,
66.09, 68.83 and 68.61, which differs from the paper for superres and deblur.
"""

from __future__ import annotations

PAPER_SETS = ("traditional", "cnn", "superres", "deblur", "color", "frameinterp")
"""2AFC validation sets, in the column order of the table."""

TABLE_5: dict[str, tuple[float, float, float, float, float, float]] = {
    "Human": (80.8, 84.4, 73.4, 67.1, 68.8, 68.6),
    "L2": (59.9, 77.8, 64.7, 58.2, 63.5, 55.0),
    "SSIM": (60.3, 79.1, 65.1, 58.6, 58.1, 57.7),
    "FSIMc": (61.4, 78.6, 68.1, 59.5, 57.3, 57.7),
    "HDR-VDP": (57.4, 76.8, 64.7, 59.0, 53.7, 56.6),
    "Gaussian": (60.5, 80.7, 64.9, 59.5, 62.8, 57.2),
    "K-means": (66.6, 83.0, 67.3, 59.8, 63.1, 59.8),
    "Watching": (66.5, 80.7, 69.6, 60.6, 64.4, 61.6),
    "Split-Brain": (69.5, 81.4, 69.6, 59.3, 64.3, 61.1),
    "Puzzle": (71.5, 82.0, 70.2, 60.2, 62.8, 61.8),
    "BiGAN": (69.8, 83.0, 70.7, 60.5, 63.7, 62.5),
    "SqueezeNet": (73.3, 82.6, 70.1, 60.1, 63.6, 62.0),
    "AlexNet": (70.6, 83.1, 71.7, 60.7, 65.0, 62.7),
    "VGG": (70.1, 81.3, 69.0, 59.0, 60.2, 62.1),
    "Squeeze-lin": (76.1, 83.5, 71.1, 60.8, 65.3, 63.2),
    "Alex-lin": (73.9, 83.4, 71.5, 61.2, 65.3, 63.2),
    "VGG-lin": (76.0, 82.8, 70.5, 60.5, 62.5, 63.0),
    "Squeeze-scratch": (74.9, 83.1, 71.1, 60.8, 63.0, 62.4),
    "Alex-scratch": (77.6, 82.8, 71.1, 61.0, 65.6, 63.3),
    "VGG-scratch": (77.9, 83.7, 71.1, 60.6, 64.0, 62.9),
    "Squeeze-tune": (76.7, 83.2, 70.4, 61.1, 63.2, 63.2),
    "Alex-tune": (77.7, 83.5, 69.1, 60.5, 64.8, 62.9),
    "VGG-tune": (79.3, 83.5, 69.8, 60.5, 63.4, 62.3),
}
"""Scores by the paper's name of the method, in the order of `PAPER_SETS`."""

_NETS = {"alex": ("Alex", "AlexNet"), "vgg": ("VGG", "VGG"), "squeeze": ("Squeeze", "SqueezeNet")}
_SELF_SUPERVISED = {
    "random": "Gaussian",
    "kmeans": "K-means",
    "watching": "Watching",
    "split-brain": "Split-Brain",
    "puzzle": "Puzzle",
    "bigan": "BiGAN",
}
_OTHERS = {"human": "Human", "l2": "L2", "ssim": "SSIM", "fsim": "FSIMc"}


def paper_row(net_type: str, mode: str = "lin") -> str | None:
    """Row name of a method in the paper's table, or None if it has no such row.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``, ``"caffe-alexnet"``, or ``"human"``, ``"l2"``, ``"ssim"``,
            ``"fsim"``.
        mode: Variant of a network: ``"lin"``, ``"tune"``, ``"scratch"``, ``"baseline"``; for AlexNet also ``"random"``,
            or the method that trained the backbone without labels: ``"kmeans"``, ``"watching"``, ``"split-brain"``,
            ``"puzzle"`` or ``"bigan"``.

    Returns:
        A key of `TABLE_5`, or None.

    Example:
        >>> paper_row("alex"), paper_row("squeeze", "baseline"), paper_row("vgg", "kmeans")
        ('Alex-lin', 'SqueezeNet', None)
        >>> paper_row("caffe-alexnet", "bigan")
        'BiGAN'
    """
    if net_type == "caffe-alexnet":
        return _SELF_SUPERVISED.get(mode)
    if net_type not in _NETS:
        return _OTHERS.get(net_type)
    calibrated, plain = _NETS[net_type]
    if mode in _SELF_SUPERVISED:
        return _SELF_SUPERVISED[mode] if net_type == "alex" else None
    row = plain if mode == "baseline" else f"{calibrated}-{mode}"
    return row if row in TABLE_5 else None

"""Ways out of a missing backbone, as options of the command that was typed."""

from __future__ import annotations

_WAYS = {
    "calibration": ("--model.net_type embedded", "--model.weights DIR"),
    "distillation": ("--model.teacher embedded", "--model.teacher_weights DIR"),
    "bapps": ("the method, or --judge, embedded", "--weights DIR"),
}
_OF_IMAGE_RECIPES = (
    "--scores.net_type embedded (of the loss: --model.loss_net embedded)",
    "--scores.weights DIR (of the loss: --model.loss_weights DIR)",
)
_OF_OTHERS = ("--net embedded", "--weights DIR")


def in_options(message: str, target: str, args: list[str]) -> str:
    """An error with options of the command line in the place of Python's arguments.

    Args:
        message: Text of an error.
        target: ``"module:function"`` of the command.
        args: Arguments of the command.

    Returns:
        The text; unchanged unless a backbone is missing.
    """
    from lpips_lightning.backbones.fetch import PYTHON_WAYS

    package, _, name = target.partition(":")[0].rpartition(".")
    ways = _WAYS.get(name, _OF_IMAGE_RECIPES if package.endswith(".recipes") else _OF_OTHERS)
    ways = _OF_OTHERS if args[:1] == ["fast"] else ways
    for python, option in zip(PYTHON_WAYS, ways, strict=True):
        message = message.replace(python, option)
    return message

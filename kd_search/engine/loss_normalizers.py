"""Running numbers that Detectron2's dense detectors keep outside of their state."""

from torch import nn

#: RetinaNet and its kin divide their losses by a running mean of the number of positive anchors. It
#: is a plain number, so no checkpoint of the model has it, and a resumed run would begin anew.
_NAME = "loss_normalizer"


def read_loss_normalizers(model: nn.Module) -> dict[str, float]:
    """The numbers by the names of their modules; "" is the model itself."""
    return {
        name: float(value)
        for name, module in model.named_modules()
        if isinstance(value := module.__dict__.get(_NAME), (int, float))
    }


def write_loss_normalizers(model: nn.Module, numbers: dict[str, float]) -> None:
    """Put back what :func:`read_loss_normalizers` gave; modules that are gone are passed over."""
    modules = dict(model.named_modules())
    for name, value in numbers.items():
        if name in modules:
            setattr(modules[name], _NAME, value)

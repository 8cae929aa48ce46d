"""Schema of checkpoints, checked before they are applied."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Optional

import numpy as np
import torch
from detectron2.solver import LRMultiplier
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, create_model
from torch import nn

from kd_search.utils.schema import Count, NonNegative, Schema, check_schema, shown

# State of torch's SGD, Adam, RMSprop and Adagrad in the shape of a parameter.
_BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
# Above any setting of an optimizer; fits into a float32 and a 64-bit integer.
_LARGEST = 1e15


def _weight(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise ValueError(f"is an array of {value.dtype}")
    elif not isinstance(value, torch.Tensor):
        raise ValueError("is no tensor")
    else:
        _dense(value)
    return value


def _dense(tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ValueError(f"is not a dense tensor of real numbers ({tensor.layout}, {tensor.dtype})")


def _value(value: Any) -> Any:
    """Values of an optimizer: tensors, finite numbers, flags, names, and tuples of them."""
    if isinstance(value, torch.Tensor):
        _dense(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _value(item)
    elif isinstance(value, (bool, int, float)):
        if not abs(value) <= _LARGEST:
            raise ValueError("is out of range")
    elif not (value is None or isinstance(value, str)):
        raise ValueError("is neither a number nor a tensor")
    return value


def _rate(value: Any) -> Any:
    """A learning rate: a number, or a tensor of one."""
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    if type(number) not in (int, float) or not 0 <= number <= _LARGEST:
        raise ValueError("is no learning rate")
    return value


Weights = dict[str, Annotated[Any, AfterValidator(_weight)]]
_Value = Annotated[Any, BeforeValidator(_value)]
_OPEN = ConfigDict(**{**Schema.model_config, "extra": "allow"})


#: Default of an absent part; pydantic does not validate defaults, so that None in a file is wrong.
_ABSENT: Any = None


class _Model(Schema):
    model: Annotated[Weights, Field(min_length=1)]


class _Group(Schema):
    model_config = _OPEN
    __pydantic_extra__: dict[str, _Value]

    params: list[Count]
    lr: Annotated[Any, AfterValidator(_rate)]


class _Optimizer(Schema):
    state: dict[Count, dict[str, _Value]]
    param_groups: list[_Group]


class _Scheduler(Schema):
    last_epoch: Count
    base_lrs: list[Annotated[Any, AfterValidator(_rate)]] = _ABSENT


class _Best(Schema):
    best_metric: Optional[float]
    best_iter: Optional[Count]


class _Hooks(Schema):
    LRScheduler: _Scheduler = _ABSENT
    BestCheckpointer: _Best = _ABSENT


class _Trainer(Schema):
    """State of :class:`kd_search.engine.PersonSearchTrainer`; older versions have fewer fields."""

    iteration: Count
    seed: Count = 0
    skipped_steps: Count = 0
    skipped_in_row: Count = 0
    loss_normalizers: dict[str, NonNegative] = {}
    hooks: _Hooks = _Hooks()


class _GradScaler(Schema):
    scale: Annotated[float, Field(gt=0)]
    growth_factor: Annotated[float, Field(gt=1)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1)]
    tracker: Count = Field(alias="_growth_tracker")


class _Whole(Schema):
    """The parts that training saves under these names; their owners check others."""

    iteration: Count = _ABSENT
    initial_weights: dict[str, dict[str, str]] = _ABSENT
    optimizer: _Optimizer = _ABSENT
    scheduler: _Scheduler = _ABSENT
    trainer: _Trainer = _ABSENT
    grad_scaler: _GradScaler = _ABSENT


def check_model(checkpoint: Mapping[str, Any], path: str) -> None:
    """Raise ValueError, with file and name, if ``model`` has an entry that is no dense tensor or
    array of real numbers."""
    check_schema({"model": checkpoint["model"]}, _Model, path)


def check_parts(
    checkpoint: Mapping[str, Any], parts: Mapping[str, Any], path: str, more: Iterable[str] = ()
) -> None:
    """Check that parts of a checkpoint fit the objects that will load them.

    Args:
        checkpoint: content of the file.
        parts: name to object: optimizer, scheduler, ...
        path: of the file, for the message.
        more: names of plain values to check.

    Raises:
        ValueError: one line with the file, the path of the first wrong field, and the reason.
    """
    found = {name: checkpoint[name] for name in (*parts, *more) if name in checkpoint}
    if isinstance(found.get("grad_scaler"), dict) and not found["grad_scaler"]:
        del found["grad_scaler"]  # of a disabled scaler
    fields: dict[str, Any] = {
        name: (Weights, None) for name in found if isinstance(parts.get(name), nn.Module)
    }
    check_schema(found, create_model("_Parts", __base__=_Whole, **fields), path)
    iteration = found.get("iteration")
    for name, state in found.items():
        part, where = parts.get(name), f"{path}: {name}"
        if isinstance(part, nn.Module):
            check_dtypes(state, part.state_dict(), where)
        elif isinstance(part, torch.optim.Optimizer):
            _check_optimizer(state, part, where)
        elif isinstance(part, torch.optim.lr_scheduler.LRScheduler):
            _check_scheduler(state, part, iteration, where)
            hooks = found.get("trainer", {}).get("hooks", {})
            if "LRScheduler" in hooks:
                where = f"{path}: trainer.hooks.LRScheduler"
                _check_scheduler(hooks["LRScheduler"], part, iteration, where)


def check_dtypes(state: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, with the name, for a weight that the model's type cannot represent."""
    for name, value in state.items():
        here = own.get(name)
        if isinstance(value, torch.Tensor) and isinstance(here, torch.Tensor):
            if not torch.can_cast(value.dtype, here.dtype):
                raise ValueError(f"{where}: {name} is {value.dtype}, {here.dtype} is expected")


def _check_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, where: str
) -> None:
    groups, own = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in side] for side in (groups, own)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{where} has groups of {sizes[0]} parameters, here they are {sizes[1]}")
    for index, (group, here) in enumerate(zip(groups, own)):
        for key, value in here.items():
            if key != "params" and not _alike(group.get(key), value, key in group):
                raise ValueError(
                    f"{where}.param_groups[{index}].{key} is {shown(group.get(key))}, here "
                    f"it is {value!r}"
                )
    numbers = [number for group in groups for number in group["params"]]
    shapes = dict(zip(numbers, (p.shape for group in own for p in group["params"])))
    if len(shapes) < len(numbers):
        raise ValueError(f"{where}.param_groups have a parameter twice")
    for number, values in state["state"].items():
        if number not in shapes:
            raise ValueError(f"{where}.state[{number}] is of no parameter")
        for key, value in values.items():
            entry, tensor = f"{where}.state[{number}].{shown(key)}", isinstance(value, torch.Tensor)
            # torch counts steps in numbers or in tensors without dimensions; other state are
            # tensors, most of them of the parameter's shape.
            if not (tensor or value is None or (key == "step" and type(value) in (int, float))):
                raise ValueError(f"{entry} is no tensor, found {shown(value)}")
            if tensor and value.shape != shapes[number] and (value.dim() or key in _BUFFERS):
                shape, other = tuple(value.shape), tuple(shapes[number])
                raise ValueError(f"{entry} is of shape {shape}, not {other}")


def _alike(value: Any, here: Any, given: bool) -> bool:
    """Whether values of an optimizer differ at most in a number, as the learning rate does; flags
    choose the algorithm."""
    if here is None or isinstance(here, bool):
        # torch's optimizers set flags that an older version did not save.
        return not given or value is here
    if isinstance(here, (tuple, list)):
        return isinstance(value, (tuple, list)) and len(value) == len(here)
    if not isinstance(here, (int, float, torch.Tensor)):
        return type(value) is type(here)
    if isinstance(value, torch.Tensor) and isinstance(here, torch.Tensor):
        return type(value) is type(here) and value.numel() == 1 and value.dtype == here.dtype
    return not isinstance(here, torch.Tensor) and type(value) in (int, float)


def _check_scheduler(
    state: Mapping[str, Any], scheduler: Any, iteration: Optional[int], where: str
) -> None:
    epoch = state["last_epoch"]
    # Detectron2 steps it once an iteration, before or after it writes a checkpoint.
    steps = isinstance(scheduler, LRMultiplier) and iteration is not None
    if steps and epoch - iteration not in (0, 1):
        raise ValueError(f"{where}.last_epoch {epoch} is not of iteration {iteration}")
    rates = getattr(scheduler, "base_lrs", None)
    if rates is not None and len(state.get("base_lrs", rates)) != len(rates):
        raise ValueError(f"{where}.base_lrs has {len(state['base_lrs'])} rates, not {len(rates)}")
    for key in state:
        # Loading sets all entries as attributes: they must not hide a method or the optimizer.
        hidden = getattr(scheduler, str(key), None)
        if callable(hidden) or isinstance(hidden, torch.optim.Optimizer):
            raise ValueError(f"{where}.{shown(key)} is no state of a scheduler")

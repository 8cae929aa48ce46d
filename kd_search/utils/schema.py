"""Schemas of files: one check where a file is read, one line about the first error."""

import gc
import reprlib
from typing import Annotated, Any, TypeVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

_INT64 = 2**63 - 1


class Schema(BaseModel):
    """Base of the schemas: types are strict ("1" is no number), NaN and infinity are refused.

    Unknown keys are allowed, because a newer version may have written them.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def _identifier(value: Any) -> Any:
    if isinstance(value, str) or (type(value) is int and abs(value) <= _INT64):
        return value
    raise ValueError("is neither a 64-bit integer nor a string")


def _with_extent(box: list[float]) -> list[float]:
    if box[2] < box[0] or box[3] < box[1]:
        raise ValueError("ends before it starts")
    return box


Integer = Annotated[int, Field(ge=-_INT64, le=_INT64)]
#: 0 or more.
Count = Annotated[int, Field(ge=0, le=_INT64)]
#: Of images, in pixels.
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: In pixels; far more than any image has.
Coordinate = Annotated[float, Field(ge=-1e7, le=1e7)]
Percent = Annotated[float, Field(ge=0, le=100 + 1e-6)]
NonNegative = Annotated[float, Field(ge=0)]
#: 64-bit integer or text.
Identifier = Annotated[Any, AfterValidator(_identifier)]
FourNumbers = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
#: XYXY, absolute pixels.
CornerBox = Annotated[FourNumbers, AfterValidator(_with_extent)]

AnySchema = TypeVar("AnySchema", bound=BaseModel)


def check_schema(value: Any, schema: type[AnySchema], where: Any) -> AnySchema:
    """Validate the content of a file.

    Args:
        value: nested containers; not modified.
        schema: their schema.
        where: the file, for the message.

    Returns:
        The value as an instance of the schema.

    Raises:
        ValueError: one line with the file, the path of the first wrong field, and the error.
    """
    collecting = gc.isenabled()
    # Creating an object for each of 100,000 annotations would trigger many garbage collections.
    gc.disable()
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{where}: {_first(error)}") from None
    finally:
        if collecting:
            gc.enable()


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(map(_step, first["loc"])).removeprefix(".")
    kind, message = first["type"], first["msg"]
    if kind == "missing":
        return f"{place} is missing"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
    else:
        message = f"is wrong: {message[0].lower()}{message[1:]}"
    return f"{place} {message}".lstrip() + f", found {shown(first['input'])}"


def _step(part: Union[int, str]) -> str:
    if isinstance(part, str) and part.replace("_", "a").replace("[key]", "key").isalnum():
        return f".{part}"
    return f"[{reprlib.repr(part)}]"


def shown(value: Any) -> str:
    """Return a wrong value in a few characters on one line."""
    if isinstance(value, (str, float, bool, type(None))) or (
        # Python refuses to format longer ones in decimal digits.
        isinstance(value, int) and value.bit_length() < 1000
    ):
        return reprlib.repr(value)
    if isinstance(value, list) and len(value) <= 4 and all(type(v) in (int, float) for v in value):
        return reprlib.repr(value) if all(abs(v) < 1e300 for v in value) else "huge numbers"
    return f"a {type(value).__name__}"

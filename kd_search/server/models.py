"""What the API takes and gives."""

from typing import Annotated, Any, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

PersonId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}\.[0-9]{1,9}$")]
PictureId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Name = Annotated[str, StringConstraints(max_length=4096)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e15, le=1e15)]
Box = tuple[Number, Number, Number, Number]
#: Seconds since 1970 on the clock of the cameras, or "2026-11-03" or "2026-11-03T14:05".
Time = Union[Number, Annotated[str, StringConstraints(max_length=32)]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Wanted(_Strict):
    """The wanted person in one picture: somebody in the gallery, or in a picture that was sent."""

    id: Optional[PersonId] = Field(None, description="of somebody in the gallery, alone")
    picture: Optional[PictureId] = Field(None, description="of POST /api/pictures")
    person: Optional[Annotated[int, Field(ge=0, le=10_000)]] = Field(
        None, description="place in the people of that picture"
    )
    box: Optional[Box] = Field(None, description="XYXY in pixels of that picture, instead")


class Mark(_Strict):
    """Whether a result shows the wanted person."""

    id: PersonId
    right: bool


class Search(_Strict):
    """Whom to search for, and where."""

    query: Annotated[list[Wanted], Field(min_length=1, max_length=20)]
    cameras: Annotated[list[Name], Field(max_length=1000)] = []
    start: Optional[Time] = Field(None, description="nobody who was seen earlier")
    end: Optional[Time] = Field(None, description="nobody who was seen later; included")
    folders: Annotated[list[Name], Field(max_length=100)] = Field(
        [], description="of the gallery, as they were indexed; their subfolders are included"
    )
    min_score: Optional[Annotated[Number, Field(ge=0, le=1)]] = Field(
        None, description="nobody whom the detector found with a lower score"
    )
    per: Literal["person", "picture", "camera"] = Field(
        "picture", description="at most one result for each; a tracklet of a video is a person"
    )
    top_k: Annotated[int, Field(ge=1, le=500)] = 24
    marks: Annotated[list[Mark], Field(max_length=1000)] = Field(
        [], description="in the order in which they were given; without the last one, it is undone"
    )


class Detected(BaseModel):
    """Somebody in a picture that was sent."""

    box: Box
    score: float


class Picture(BaseModel):
    """A picture that was sent."""

    id: str
    width: int
    height: int
    people: list[Detected]


class Result(BaseModel):
    """Somebody in the gallery; the fields of ``kd-search search``'s JSON."""

    id: str
    path: str
    also: list[str]
    box: Box
    score: float
    similarity: float
    camera: Optional[str]
    time: Optional[float]
    time_text: Optional[str]
    frame: Optional[int]
    second: Optional[float]
    first: Optional[float]
    last: Optional[float]
    width: int
    height: int
    verdict: str
    mark: Optional[str]


class Results(BaseModel):
    """Answer of a search."""

    results: list[Result]
    people: int = Field(description="in the gallery")
    left_out: list[str] = Field(description="ids of the people in the query pictures themselves")
    gone: list[str] = Field(description="marked people who are not in the gallery any more")


class Neighbour(BaseModel):
    """Somebody in the same picture."""

    id: str
    box: Box
    score: float


class Place(BaseModel):
    """A picture of the gallery, by somebody in it."""

    id: str
    box: Box
    score: float
    width: int
    height: int
    path: str
    camera: Optional[str]
    time: Optional[float]
    time_text: Optional[str]
    second: Optional[float]
    people: list[Neighbour] = Field(description="everybody in it")
    previous: Optional[str] = Field(description="in the picture before, at the same camera")
    next: Optional[str]


class Status(BaseModel):
    """The gallery and its network."""

    gallery: str
    people: int
    cameras: dict[str, int] = Field(description="people found at each")
    folders: dict[str, int] = Field(
        description="people in each and in its subfolders; without the deepest if they are many"
    )
    min_score: float = Field(description="nobody was indexed with a lower score")
    start: Optional[float]
    end: Optional[float]
    model: str
    model_sha256: str
    calibrated: bool
    max_bytes: int
    max_pixels: int
    version: str


class Histogram(BaseModel):
    """People over time, by camera ("" without one)."""

    start: Optional[float]
    end: Optional[float]
    counts: dict[str, list[float]]
    unknown: int = Field(description="people in files of unknown time")


class Problem(BaseModel):
    """Answer of a request that failed."""

    error: dict[str, Any]

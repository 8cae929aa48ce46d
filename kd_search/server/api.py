"""The API: what is asked of a gallery, as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, Optional, Union

import numpy as np
from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from kd_search import __version__
from kd_search.gallery import Filter
from kd_search.gallery.capture import parse_time, show_time
from kd_search.gallery.marks import Marks
from kd_search.utils.files import printable
from kd_search.utils.pictures import ImageError
from kd_search.visualization.own_search_page import own_search_page, result_tiles, wanted_tile

from . import models
from .errors import LOG, NUMBER, ApiError, one_line, problem
from .library import GalleryUnreadableError, Library
from .uploads import Uploads

#: Results of a sheet, which holds their pictures.
_SHEET = 60
_CODES = {404: "path", 405: "method", 400: "request"}
_DESCRIPTION = (
    "Search for a person in a gallery of pictures. Times are seconds since 1970 on the clock of "
    "the cameras, boxes XYXY in pixels of the upright picture. A request that fails is answered "
    "with an error of code, message and the number of the request in the server's log."
)
_PERSON = Annotated[str, Path(pattern=r"^[0-9]{1,18}\.[0-9]{1,9}$")]


def create_api(library: Library, uploads: Uploads, status: dict[str, Any]) -> FastAPI:
    """Make the application.

    Args:
        library, uploads: for the requests.
        status: constant fields of :class:`models.Status`.
    """
    app = FastAPI(
        title="kd_search gallery",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": {"model": models.Problem}, "5XX": {"model": models.Problem}},
    )
    _handle_errors(app)

    @app.get("/api/status")
    def get_status() -> models.Status:
        """What is in the gallery, and which network searches it."""
        listing = library.listing
        times = listing.histogram(1)
        return models.Status(
            people=len(library),
            cameras=listing.people(),
            folders=listing.in_folders,
            start=times["start"],
            end=times["end"],
            **status,
        )

    @app.get("/api/timeline")
    def get_timeline(bins: Annotated[int, Query(ge=1, le=1000)] = 120) -> models.Histogram:
        """How many people were found when, in bins of equal length."""
        return models.Histogram(**library.listing.histogram(bins))

    @app.post(
        "/api/pictures",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in ("image/jpeg", "image/png")
                },
            }
        },
    )
    async def send_picture(request: Request) -> models.Picture:
        """Find the people in a picture, the body of the request; it is kept for half an hour."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        upload = await run_in_threadpool(uploads.add, await request.body(), kind)
        people = zip(upload.boxes.tolist(), upload.scores.tolist())
        return models.Picture(
            id=upload.id,
            width=upload.width,
            height=upload.height,
            people=[models.Detected(box=box, score=score) for box, score in people],
        )

    @app.post("/api/search")
    def search(wanted: models.Search) -> models.Results:
        """Search for a person in one or several pictures, who are the same person."""
        return _shown(_search(library, uploads, wanted))

    @app.post("/api/export", response_class=Response)
    def export(
        wanted: models.Search, form: Annotated[Literal["json", "html"], Query(alias="format")]
    ) -> Response:
        """The results of a search as a file: JSON, or a page that holds its pictures."""
        if form == "html":
            wanted.top_k = min(wanted.top_k, _SHEET)
        found = _search(library, uploads, wanted)
        headers = {"Content-Disposition": f'attachment; filename="found.{form}"'}
        if form == "json":
            document = {"search": wanted.model_dump(), **_shown(found).model_dump()}
            return JSONResponse(document, headers=headers)
        sheet = _sheet(library, uploads, wanted, found, bool(status["calibrated"]))
        return Response(sheet, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/api/people/{person}")
    def get_person(person: _PERSON) -> models.Place:
        """The picture of somebody: everybody in it, and its neighbours at the same camera."""
        scene = library.scene(person)
        hit = scene.hit
        return models.Place.model_validate(
            {
                **asdict(hit),
                "path": printable(hit.path),
                "camera": None if hit.camera is None else printable(hit.camera),
                "time_text": None if hit.time is None else show_time(hit.time),
                "people": [asdict(other) for other in scene.people],
                "previous": scene.previous,
                "next": scene.next,
            }
        )

    @app.get("/api/people/{person}/picture", response_class=Response)
    def get_picture(
        person: _PERSON, size: Annotated[Literal["small", "large", "person"], Query()] = "small"
    ) -> Response:
        """The picture of somebody as JPEG, or them alone ("person")."""
        return Response(library.picture(person, size), media_type="image/jpeg")

    return app


def _search(library: Library, uploads: Uploads, wanted: models.Search) -> dict[str, Any]:
    embeddings, left_out = [], []
    for one in wanted.query:
        embedding, own = _embedding(library, uploads, one)
        embeddings.append(embedding)
        left_out += own
    gone = set(library.gone([mark.id for mark in wanted.marks]))
    marks = Marks((mark.id, mark.right) for mark in wanted.marks if mark.id not in gone)
    results = library.search(
        embeddings,
        marks,
        _filter(library, wanted),
        top_k=wanted.top_k,
        per=wanted.per,
        without=left_out,
    )
    return {
        "results": results,
        "people": len(library),
        "left_out": left_out,
        "gone": sorted(gone),
    }


def _shown(found: dict[str, Any]) -> models.Results:
    """Results whose names any encoder can write."""
    results = []
    for result in found["results"]:
        camera = result["camera"]
        names = {
            "path": printable(result["path"]),
            "also": [printable(path) for path in result["also"]],
            "camera": None if camera is None else printable(camera),
        }
        results.append(models.Result(**{**result, **names}))
    return models.Results(**{**found, "results": results})


def _embedding(
    library: Library, uploads: Uploads, wanted: models.Wanted
) -> tuple[np.ndarray, list[str]]:
    """Embedding of the wanted person, and ids of the people who are in the picture itself."""
    given = (wanted.picture, wanted.person, wanted.box)
    if wanted.id is not None:
        if given != (None, None, None):
            raise ApiError(422, "query", "give an id alone")
        return library.person(wanted.id)[1], [wanted.id]
    if wanted.picture is None or (wanted.person is None) == (wanted.box is None):
        raise ApiError(422, "query", "give an id, or a picture with either person or box")
    upload = uploads.get(wanted.picture)
    own = library.ids_of(upload.sha256)
    if wanted.box is not None:
        return uploads.embed(upload, wanted.box), own
    assert wanted.person is not None
    if wanted.person >= len(upload.boxes):
        raise ApiError(422, "query", f"the picture has {len(upload.boxes)} people")
    return upload.embeddings[wanted.person], own


def _filter(library: Library, wanted: models.Search) -> Filter:
    known, folders = library.listing.cameras, library.listing.folders
    for name in wanted.cameras:
        if name not in known:
            raise ApiError(422, "camera", f"the gallery has no camera {name[:80]!r}")
    return Filter(
        cameras=[known[name] for name in wanted.cameras],
        start=_time(wanted.start),
        end=_time(wanted.end, end=True),
        # They are compared with those in the gallery, as text.
        folders=[folders.get(name, name) for name in wanted.folders if name],
        min_score=wanted.min_score,
    )


def _time(value: Union[float, str, None], *, end: bool = False) -> Optional[float]:
    if not isinstance(value, str):
        return value
    try:
        return parse_time(value, end=end)
    except (ValueError, OverflowError):
        raise ApiError(
            422, "time", "a time is written 2026-11-03 or 2026-11-03T14:05:09, without a zone"
        ) from None


def _sheet(
    library: Library,
    uploads: Uploads,
    wanted: models.Search,
    found: dict[str, Any],
    calibrated: bool,
) -> str:
    tiles = []
    for one in wanted.query:
        if one.id is not None:
            hit, _ = library.person(one.id)
            try:
                scene = library.read(hit)
            except ImageError:
                scene = None
            tiles.append(wanted_tile(hit.path, scene, hit.box))
            continue
        assert one.picture is not None
        upload = uploads.get(one.picture)
        box: Sequence[float] = one.box or upload.boxes[one.person or 0].tolist()
        tiles.append(wanted_tile("sent picture", uploads.pixels(upload), box))
    facts = [f"{found['people']:,} people in the gallery, {len(found['results'])} results."]
    if not calibrated:
        facts.append(
            "Which similarity means the same person is not known: the model is not calibrated."
        )
    found_tiles = result_tiles(found["results"], library.read)
    return own_search_page("Search for a person", tiles, found_tiles, facts)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        code = error.code if isinstance(error, ApiError) else _CODES.get(error.status_code, "http")
        return problem(request.scope, error.status_code, code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # Without what was sent, which may be long.
        where = ".".join(str(part) for part in first["loc"][:6])
        message = printable(f"{where}: {first['msg']}")[:300]
        return problem(request.scope, 422, "request", message)

    @app.exception_handler(GalleryUnreadableError)
    async def unreadable(request: Request, error: GalleryUnreadableError) -> JSONResponse:
        number = request.scope.get(NUMBER, "")
        LOG.error("%s the gallery cannot be read: %s", number, one_line(str(error)))
        message = "the gallery cannot be read: see the log of the server"
        return problem(request.scope, 503, "gallery", message)

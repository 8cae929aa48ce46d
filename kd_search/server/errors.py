"""What the API answers instead of a result, and the log."""

import logging
from collections.abc import Mapping
from typing import Any, Optional

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from kd_search.utils.files import printable

LOG = logging.getLogger("kd_search.server")
#: Key of a scope: the number of the request, in the log, in errors and in the header X-Request-Id.
NUMBER = "kd_search.number"


class ApiError(HTTPException):
    """An answer with an error, see :func:`problem`."""

    def __init__(
        self, status: int, code: str, message: str, headers: Optional[Mapping[str, str]] = None
    ):
        """
        Args:
            status: of HTTP.
            code: for programs; see docs/serve.md.
            message: for people, one sentence without paths of this machine.
            headers: of the answer.
        """
        super().__init__(status, message, dict(headers or {}))
        self.code = code


def problem(
    scope: Mapping[str, Any],
    status: int,
    code: str,
    message: str,
    headers: Optional[Mapping[str, str]] = None,
) -> JSONResponse:
    """The answer ``{"error": {"code", "message", "request"}}``."""
    error = {"code": code, "message": printable(message), "request": scope.get(NUMBER, "")}
    return JSONResponse({"error": error}, status, headers)


def one_line(text: str) -> str:
    """Text that cannot pretend to be several lines of the log."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in printable(text))[:500]

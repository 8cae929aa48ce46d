"""Search a gallery in the browser.

    kd-search serve --gallery people --model student.onnx
    kd-search serve --gallery people --model student.onnx --host 0.0.0.0 --token-file token.txt

Prints the address of the page. Only this machine can reach it unless --host says otherwise, and
then a token is needed: --token-file is made with a new one if it does not exist. The page asks for
it. What the page does is also an API in JSON: see docs/serve.md.

Needs FastAPI, uvicorn and onnxruntime (pip install fastapi uvicorn onnxruntime), neither torch nor
Detectron2. Ends with Ctrl-C.

Exit status: 0 ended, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from kd_search.cli._arguments import command_parser

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ANY = ("0.0.0.0", "::", "")
#: Characters of a token.
_SHORTEST = 20


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("serve", __doc__)
    parser.add_argument(
        "--gallery",
        metavar="FOLDER",
        required=True,
        help="of kd-search index, or postgresql:// URL",
    )
    parser.add_argument(
        "--model", metavar="FILE", required=True, help="with which it was indexed (ONNX)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, help="0 for any that is free (default: 8000)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="with the token that requests must have; made if it does not exist",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        nargs="+",
        default=[],
        help="names under which the server is reached, such as that of a reverse proxy",
    )
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=20_000_000,
        help="of a picture that is sent (default: 20,000,000)",
    )
    parser.add_argument(
        "--max-pixels", type=int, help="of a picture or frame (default: as the model's)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        _serve(args)
    except (OSError, ValueError, ImportError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _serve(args: argparse.Namespace) -> None:
    for name in ("max_bytes", "max_pixels", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port must be between 0 and 65535, not {args.port}")
    token = read_token(args.token_file) if args.token_file else None
    if token is None and args.host not in _LOOPBACK:
        raise ValueError(
            f"--host {args.host} lets other machines in: give --token-file FILE (it is made if it "
            "does not exist)"
        )
    from kd_search.cli._gallery import load_searcher

    try:
        from kd_search.server.guard import Access, Limits
        from kd_search.server.serving import create_app, listen, run
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn", "h11"):
            raise
        raise ImportError(f"{error.name} is not installed: pip install fastapi uvicorn") from None
    searcher = load_searcher(args.model, args.threads, args.gallery)
    access = Access(
        frozenset(name.lower() for name in (*args.allow_host, args.host) if name),
        args.host not in _LOOPBACK,
        token,
    )
    limits = Limits(max_bytes=args.max_bytes)
    app = create_app(args.gallery, searcher, access, limits, args.max_pixels)
    listener = listen("127.0.0.1" if args.host == "localhost" else args.host, args.port)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("kd_search.server").setLevel(logging.INFO)
    shown = "localhost" if args.host in _ANY else args.host
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"http://{shown}:{listener.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    if token:
        print(f"The page asks for the token of {args.token_file}.", flush=True)
    run(app, listener)


def read_token(path: str) -> str:
    """The token of a file, which is made with a new one if it does not exist.

    Raises:
        ValueError: it has no token, or a short one; names the file.
    """
    import secrets

    try:
        # Of nobody else, before anything is in it.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        print(f"wrote {path}, with a new token", file=sys.stderr)
    with open(path, "rb") as file:
        content = file.read(4096)
        mode = os.fstat(file.fileno()).st_mode
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if len(token) < _SHORTEST or not token.isprintable() or " " in token:
        raise ValueError(
            f"{path}: must hold a token of {_SHORTEST} or more characters of ASCII in one line; "
            "remove the file, and a new one is made"
        )
    if mode & 0o077:
        print(f"{path}: others on this machine can read it: chmod 600 {path}", file=sys.stderr)
    return token

"""Find and embed people in pictures with an exported network.

    python -m kd_search.runtime student.onnx FOLDER --output people.npz
    python -m kd_search.runtime student.onnx FOLDER --boxes queries.json --output people.npz

With a person search network the .npz file has `files` (names), and for each person a row of
`picture` (index into `files`), `boxes`, `scores` and `embeddings`. --boxes names a JSON file
{"picture": [[x0, y0, x1, y1], ...]}; the embeddings of these boxes are added as `query_embeddings`,
with `query_picture`. Pictures that cannot be read are named, and left out.

A query-guided network needs --query and --box, the wanted person. Its .npz file has `similarities`
as well, and `query_embeddings` by picture.

With a re-ID network it has `files`, `picture` and `embeddings`: of the boxes of --boxes, and of the
whole picture where it has none.

Exit status: 0 all pictures were read, 1 some were not, 2 nothing was done.
"""

import argparse
import contextlib
import sys
import time
from typing import Any, Optional

import numpy as np

from kd_search.runtime.manifest import manifest_path, read_manifest
from kd_search.runtime.pictures import find_pictures
from kd_search.runtime.query_guided import QueryGuidedSearcher
from kd_search.runtime.searcher import PersonSearcher, ReIDEmbedder
from kd_search.utils.files import atomic_write, read_json
from kd_search.utils.pictures import ImageError


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kd_search.runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="ONNX file, with its manifest beside it")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="files and folders")
    parser.add_argument("--output", metavar="FILE", required=True, help=".npz file to write")
    parser.add_argument("--boxes", metavar="FILE", help="JSON file with boxes to embed")
    parser.add_argument("--query", metavar="PICTURE", help="of a query-guided network")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the wanted person of --query, in pixels of the upright picture",
    )
    parser.add_argument("--threads", type=int, help="of a picture; default: all usable cores")
    parser.add_argument("--workers", type=int, default=1, help="pictures at a time (default: 1)")
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        files = find_pictures(args.pictures)
        boxes = _boxes(args.boxes, files) if args.boxes else {}
        network = read_manifest(manifest_path(args.model))["network"]
        if network == "reid":
            embedder = ReIDEmbedder.load(args.model, args.threads)
            arrays, failed = _embed(embedder, files, boxes)
        elif network == "query_guided":
            if not args.query or not args.box:
                raise ValueError(f"{args.model}: a query-guided network needs --query and --box")
            arrays, failed = _compare(
                QueryGuidedSearcher.load(args.model, args.threads), files, args.query, args.box
            )
        else:
            searcher = PersonSearcher.load(args.model, args.threads)
            arrays, failed = _search(searcher, files, boxes, args.workers)
        with atomic_write(args.output) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except (OSError, ValueError) as error:
        print(f"runtime: {error}", file=sys.stderr)
        return 2
    people = len(arrays["picture"])
    print(f"{people} people in {len(files) - failed} pictures: {args.output}")
    return 1 if failed else 0


def _search(
    searcher: PersonSearcher, files: list[str], boxes: dict[str, Any], workers: int
) -> tuple[dict[str, np.ndarray], int]:
    dim = searcher.manifest["embedding_dim"]
    pictures, found, failed = [np.zeros(0, np.int64)], [], 0
    queries, query_pictures = [np.zeros((0, dim), np.float32)], [np.zeros(0, np.int64)]
    with _progress(len(files)) as progress:
        answers = searcher.detect_many(files, workers=workers, progress=progress)
        for index, answer in enumerate(answers):
            if answer.people is None:
                failed += 1
                print(f"runtime: {answer.error}", file=sys.stderr)
                continue
            pictures.append(np.full(len(answer.people.scores), index))
            found.append(answer.people)
            if files[index] in boxes:
                queries.append(searcher.embed(files[index], boxes[files[index]]))
                query_pictures.append(np.full(len(queries[-1]), index))
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, dim), np.float32))
    fields = [np.concatenate(parts) for parts in zip(none, *found)]
    arrays = dict(zip(("boxes", "scores", "embeddings"), fields))
    arrays |= {"files": np.array(files), "picture": np.concatenate(pictures)}
    if boxes:
        arrays["query_embeddings"] = np.concatenate(queries)
        arrays["query_picture"] = np.concatenate(query_pictures)
    return arrays, failed


def _compare(
    searcher: QueryGuidedSearcher, files: list[str], picture: str, box: list[float]
) -> tuple[dict[str, np.ndarray], int]:
    query, dim, failed = searcher.query(picture, box), searcher.manifest["embedding_dim"], 0
    none = np.zeros(0, np.float32)
    found: list[tuple[np.ndarray, ...]] = [
        (np.zeros((0, 4), np.float32), none, np.zeros((0, dim), np.float32), none)
    ]
    pictures, wanted = [np.zeros(0, np.int64)], np.zeros((len(files), dim), np.float32)
    with _progress(len(files)) as progress:
        for index, file in enumerate(files):
            try:
                *fields, wanted[index] = searcher.search(query, file)
            except ImageError as error:
                failed += 1
                print(f"runtime: {error}", file=sys.stderr)
                continue
            pictures.append(np.full(len(fields[0]), index))
            found.append(tuple(fields))
            if progress is not None:
                progress(index + 1)
    names = ("boxes", "scores", "embeddings", "similarities")
    arrays = dict(zip(names, (np.concatenate(parts) for parts in zip(*found))))
    arrays |= {"files": np.array(files), "picture": np.concatenate(pictures)}
    return {**arrays, "query_embeddings": wanted}, failed


def _embed(
    embedder: ReIDEmbedder, files: list[str], boxes: dict[str, Any]
) -> tuple[dict[str, np.ndarray], int]:
    rows = [np.zeros((0, embedder.manifest["embedding_dim"]), np.float32)]
    pictures, failed = [np.zeros(0, np.int64)], 0
    with _progress(len(files)) as progress:
        for index, file in enumerate(files):
            places = boxes.get(file) or [None]
            try:
                rows.append(embedder.embed([file] * len(places), places))
            except ImageError as error:
                failed += 1
                print(f"runtime: {error}", file=sys.stderr)
                continue
            pictures.append(np.full(len(places), index))
            if progress is not None:
                progress(index + 1)
    arrays = {"files": np.array(files), "picture": np.concatenate(pictures)}
    return {**arrays, "embeddings": np.concatenate(rows)}, failed


def _boxes(path: str, files: list[str]) -> dict[str, Any]:
    boxes = read_json(path, "file of boxes")
    if not isinstance(boxes, dict):
        raise ValueError(f'{path}: is not {{"picture": [[x0, y0, x1, y1], ...], ...}}')
    for name, rows in boxes.items():
        if name not in files:
            raise ImageError(f"{path}: {name} is none of the given pictures")
        try:
            boxes[name] = np.array(rows, np.float64).reshape(-1, 4).tolist()
        except (TypeError, ValueError):
            raise ValueError(f"{path}: the boxes of {name} are not lists of 4 numbers") from None
    return boxes


@contextlib.contextmanager
def _progress(total: int) -> Any:
    """A counter on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    start = time.monotonic()

    def show(done: int) -> None:
        left = (time.monotonic() - start) / done * (total - done)
        print(f"\r{done} of {total} pictures, {left:.0f} s left ", end="", file=sys.stderr)

    try:
        yield show
    finally:
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

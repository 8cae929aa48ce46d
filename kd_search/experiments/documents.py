"""Documents whose tables, figures and numbers are made from the results files of studies.

Markers are comments of Markdown; what is between them is replaced. FILE is a results file, relative
to the folder of the checkout; several values of an option are separated by semicolons:

    <!-- results: FILE table metrics=mAP;top1 rows=none;all -->
    <!-- /results -->

A table of all metrics and rows, or of those that are named; below it, folded, the command, seeds,
data, hardware and versions.

    <!-- results: FILE figure=docs/images/NAME.svg metric=mAP -->
    <!-- /results -->

A picture of one metric: a dot for each seed. ``curve=docs/images/NAME.svg row=all x=iterations``
with several results files, separated by semicolons, is a picture of the gain of a row over x, with
its interval over seeds; x is "iterations", "params", "people" (of the training set) or the config
key of an override.

    <!-- value: FILE ROW METRIC -->41.5 ± 0.7<!-- /value -->

A number in a sentence; a fourth word "mean", "std", "gain", "closed", "over_seeds", "over_queries"
or "seed=1" chooses another one. Names with blanks are put into quotation marks. A line must not
start with this marker: Markdown would end the paragraph there.

    <!-- results: FILE choices -->
    <!-- /results -->

The settings that were compared on people split off the training set, and which were chosen.

Every table in a section whose heading starts with "Results", "Measured" or "What distillation
gains" must be made from a file.
"""

import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from kd_search.experiments.results_file import StudyFile, read_study
from kd_search.experiments.study_facts import choices, facts
from kd_search.experiments.table import (
    closed_gap,
    draw,
    draw_curve,
    markdown,
    markdown_cell,
    markdown_interval,
)
from kd_search.utils.files import atomic_write

#: Where documents are, relative to the folder of the checkout.
DOCUMENTS = ("README.md", "docs/**/*.md", "projects/**/*.md")

_BLOCK = re.compile(
    r"(?P<begin><!-- results: (?P<words>[^\n]*?) -->\n)(?P<body>.*?)(?P<end><!-- /results -->)",
    re.DOTALL,
)
_VALUE = re.compile(
    r"(?P<begin><!-- value:\s(?P<words>[^>]*?) -->)(?P<body>[^<]*)(?P<end><!-- /value -->)"
)
_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- (/?results|/?value)\b")
_HEADING = re.compile(r"(#+) (.*)")
# Headings of sections with results start with one of these.
_RESULTS = ("Results", "Measured", "What distillation gains")
_FACTS = "How this was measured: command, seeds, data, hardware, intervals"
#: What the x axis of a curve says; a config key speaks for itself.
_X_LABELS = {
    "iterations": "training iterations",
    "params": "millions of parameters",
    "people": "people of the training set",
}


@dataclass
class Filled:
    """A document with its tables and numbers made anew."""

    text: str
    #: Pictures by path.
    pictures: dict[Path, bytes] = field(default_factory=dict)
    #: A line for each results file that the document does not agree with.
    differences: list[str] = field(default_factory=list)
    #: Lines of tables of results that are made from no file.
    typed: list[int] = field(default_factory=list)


class DocumentMaker:
    """Makes documents below a folder; each results file is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._studies: dict[str, StudyFile] = {}

    def documents(self) -> list[Path]:
        """All documents that may have markers, in the order of :data:`DOCUMENTS`."""
        found = [path for pattern in DOCUMENTS for path in sorted(self.root.glob(pattern))]
        return list(dict.fromkeys(found))

    def fill(self, document: Path) -> Filled:
        """Make what is between the markers of a document; nothing is written.

        Raises:
            FileNotFoundError: a results file is missing.
            ValueError: a marker or a results file is wrong; one line that names the document.
        """
        text = document.read_text(encoding="utf-8")
        filled = Filled(text)
        different: dict[str, str] = {}

        def made(found: "re.Match[str]", make: Any) -> str:
            if any(
                fence.start() < found.start() < fence.end()
                for fence in _FENCE.finditer(found.string)
            ):
                return found[0]
            is_block = make == self._block
            before = found.string[: found.start()].rpartition("\n")[2]
            line = found.string.count("\n", 0, found.start()) + 1
            where = f"{self._name(document)}:{line}"
            try:
                words = shlex.split(found["words"])
                if not words:
                    raise ValueError("the marker names no results file")
                body = make(words, document, filled)
                if not is_block and not before.strip(" \t>*+-"):
                    # Markdown takes a line that starts with a comment as HTML.
                    raise ValueError("the marker starts a line: put a word before it")
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{where}: {error}") from None
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if is_block:  # some readers of Markdown want blank lines around comments
                body = f"\n{body}\n"
            if body != found["body"]:
                different.setdefault(words[0], f"{where}: does not agree with {words[0]}")
            return f"{found['begin']}{body}{found['end']}"

        new = _VALUE.sub(lambda found: made(found, self._value), text)
        new = _BLOCK.sub(lambda found: made(found, self._block), new)
        outside = _FENCE.sub("", text)
        if _MARK.search(_VALUE.sub("", _BLOCK.sub("", outside))):
            raise ValueError(
                f"{self._name(document)}: a marker <!-- results: --> or <!-- value: --> is not "
                "closed, or is wrong"
            )
        for path, picture in filled.pictures.items():
            if not _same_picture(path, picture):
                name = self._name(path)
                different[name] = (
                    f"{self._name(document)}: the picture {name} is not that of its file"
                )
        filled.text, filled.differences = new, list(different.values())
        filled.typed = list(_typed_tables(new))
        return filled

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def _study(self, name: str) -> StudyFile:
        if name not in self._studies:
            self._studies[name] = read_study(self.root / name)
        return self._studies[name]

    def _block(self, words: Sequence[str], document: Path, filled: Filled) -> str:
        name, kind, *rest = [*words, ""] if len(words) == 1 else words
        kind, _, target = kind.partition("=")
        options = _options(
            rest,
            {"table": {"metrics", "rows"}, "choices": set()}.get(
                kind, {"metric", "rows", "row", "x"}
            ),
        )
        if kind == "choices":
            return choices(self._study(name), name)
        if kind == "table":
            return self._table(name, options, document)
        if kind not in ("figure", "curve") or not target.endswith(".svg"):
            raise ValueError(f"{kind!r} is not table, choices, figure=FILE.svg or curve=FILE.svg")
        path = self.root / target
        draw_it = self._figure if kind == "figure" else self._curve
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / path.name
            alt, facts = draw_it(name, options, drawn, document)
            filled.pictures[path] = drawn.read_bytes()
        link = os.path.relpath(path, document.parent).replace(os.sep, "/")
        return f"![{alt}]({link})\n\n{facts}"

    def _table(self, name: str, options: Mapping[str, list[str]], document: Path) -> str:
        study = self._study(name)
        rows = options.get("rows", [])
        _require(name, "rows", rows, [*study.teachers, *(row.name for row in study.rows)])
        table = study.table(rows)
        layout = study.table_layout()
        if "metrics" in options:
            _require(name, "metrics", options["metrics"], layout.shown(table))
            layout = replace(layout, metrics=tuple(options["metrics"]))
        return f"{markdown(table, layout)}\n{self._facts([name], table, document)}"

    def _figure(
        self, name: str, options: Mapping[str, list[str]], path: Path, document: Path
    ) -> tuple[str, str]:
        study = self._study(name)
        table = study.table(options.get("rows", []))
        layout = study.table_layout()
        metrics = options.get("metric") or layout.shown(table)[:1]
        _require(name, "metric", metrics, layout.shown(table))
        layout = replace(layout, metrics=tuple(metrics))
        source = _digest([[e["row"], e["metrics"].get(metrics[0])] for e in table])
        draw(table, path, layout, study.dataset, source=source)
        return f"{metrics[0]} of every row, a dot for each seed", self._facts(
            [name], table, document
        )

    def _curve(
        self, names: str, options: Mapping[str, list[str]], path: Path, document: Path
    ) -> tuple[str, str]:
        files = names.split(";")
        studies = [self._study(name) for name in files]
        layout = studies[0].table_layout()
        (row,), (x,) = options.get("row", [""]), options.get("x", [""])
        (metric,) = options.get("metric") or layout.shown(studies[0].table())[:1]
        points, tables = [], []
        for name, study in zip(files, studies):
            _require(name, "row", [row], [r.name for r in study.rows])
            table = study.table([study.layout.base, row])
            gain = next((e["metrics"][metric]["gain"] for e in table if e["row"] == row), None)
            if gain is None:
                raise ValueError(f"{name}: row {row!r} has no gain in {metric}")
            points.append((_position(study, row, x, name), gain))
            tables += table
        points.sort(key=lambda point: point[0])
        label = f"{metric} of {row} above {layout.base}"
        x_label = _X_LABELS.get(x, x)
        draw_curve(points, path, x_label, label, source=_digest(points))
        return f"{label} over {x_label}, with 95 % intervals over seeds", self._facts(
            files, tables, document
        )

    def _value(self, words: Sequence[str], document: Path, filled: Filled) -> str:
        if not 3 <= len(words) <= 4:
            raise ValueError("the marker must be FILE ROW METRIC, and what of it")
        name, row, metric = words[:3]
        what = words[3] if len(words) == 4 else ""
        study = self._study(name)
        table = study.table()
        _require(name, "row", [row], [entry["row"] for entry in table])
        (entry,) = (entry for entry in table if entry["row"] == row)
        _require(name, "metric", [metric], list(entry["metrics"]))
        numbers = entry["metrics"][metric]
        gain = numbers["gain"] or {}
        if what.startswith("seed="):
            seeds = {str(seed): value for seed, value in numbers["seeds"].items()}
            _require(name, "seed", [what[5:]], list(seeds))
            return f"{seeds[what[5:]]:.1f}"
        if what in ("mean", "std") and numbers[what] is not None:
            return f"{numbers[what]:.1f}"
        if what == "closed":
            share = closed_gap(table, study.table_layout().base, row, metric)
            if share is not None:
                return f"{share:.0f} %"
        if what == "gain" and gain:
            return markdown_cell(gain, sign=True)
        if what in ("over_seeds", "over_queries") and gain.get(what):
            return markdown_interval(gain[what])
        if not what:
            return markdown_cell(numbers)
        raise ValueError(f"{name}: {row!r} has no {what!r} of {metric}")

    def _facts(
        self, names: Sequence[str], table: Sequence[Mapping[str, Any]], document: Path
    ) -> str:
        lines = []
        for name in dict.fromkeys(names):
            study = self._study(name)
            link = os.path.relpath(self.root / name, document.parent).replace(os.sep, "/")
            lines.append(facts(study, table, f"[{os.path.basename(name)}]({link})"))
        # Folded: it is long, and the same below many tables. The attribute is for Python-Markdown.
        return (
            f'<details markdown="1">\n<summary>{_FACTS}</summary>\n\n'
            + "\n".join(dict.fromkeys(lines))
            + "\n</details>\n"
        )


def _position(study: StudyFile, row: str, x: str, name: str) -> float:
    runs = [run for run in study.runs if run.row == row]
    found: set[Any] = set()
    for run in runs:
        opts = dict(zip(run.opts[::2], run.opts[1::2]))
        if x in ("iterations", "params"):
            found.add(getattr(run, x))
        elif x == "people":
            data = study.environments[run.environment].data if run.environment is not None else {}
            found |= {d.get("people") for n, d in data.items() if n != study.dataset}
        else:
            found.add(opts.get(x))
    value: Any = found.pop() if len(found) == 1 else None
    try:
        return float(value) / (1e6 if x == "params" else 1)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: x={x} is not one number of the runs of {row!r}") from None


def _options(words: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    options = {}
    for word in filter(None, words):
        key, equals, value = word.partition("=")
        if key not in known or not equals:
            raise ValueError(f"{word!r} is no option: they are {', '.join(sorted(known))}")
        options[key] = value.split(";")
    return options


def _require(name: str, what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    for value in chosen:
        if value not in known:
            raise ValueError(f"{name}: {what} {value!r} is none of {', '.join(known)}")


def _digest(drawn: Any) -> str:
    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        if isinstance(value, Mapping):
            return {str(k): rounded(v) for k, v in value.items()}
        return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value

    return hashlib.sha256(json.dumps(rounded(drawn)).encode()).hexdigest()


def _same_picture(path: Path, made: bytes) -> bool:
    """Whether a file is the picture; of another version of matplotlib, whether it was drawn from
    the same numbers."""
    if not path.is_file():
        return False
    there = path.read_bytes()
    creator, source = (
        re.compile(rb"<dc:%s>.*?</dc:%s>" % (t, t), re.DOTALL) for t in (b"creator", b"description")
    )
    ours, theirs = creator.search(made), creator.search(there)
    if ours and theirs and ours[0] != theirs[0]:
        found = source.search(there)
        return found is not None and found[0] in made
    return there == made


def _typed_tables(text: str) -> Iterator[int]:
    """Lines where tables start that are in a section of results and not between markers."""
    measured: Optional[int] = None
    fenced = inside = in_table = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        if fenced:
            continue
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if measured is None or level <= measured:
                is_results = heading[2].startswith(_RESULTS)
                measured = level if is_results else None
        if line.startswith("<!-- results:"):
            inside = True
        elif line.startswith("<!-- /results"):
            inside = False
        starts = line.startswith("|") and not in_table
        in_table = line.startswith("|")
        if starts and measured is not None and not inside:
            yield number


def write_filled(document: Path, filled: Filled) -> None:
    """Write a document and its pictures, those files that have changed."""
    for path, picture in filled.pictures.items():
        if not _same_picture(path, picture):
            with atomic_write(path) as file:
                file.write(picture)
    if filled.text != document.read_text(encoding="utf-8"):
        with atomic_write(document) as file:
            file.write(filled.text.encode())

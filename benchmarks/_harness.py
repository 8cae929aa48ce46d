"""Interleaved timing, rows with limits, and versions for all benchmarks."""

import gc
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median
from typing import Callable, Optional

#: Kinds of ratios and their limits.
#: "speed-up": reference / ours, at least the limit; "overhead": ours / reference, at most the
#: limit; "value": no ratio, the field "value" in "unit" is at most the limit.
RATIO_KINDS = ("speed-up", "overhead", "value")


@dataclass
class Timing:
    """Seconds of every repeat of the two sides, in the order in which they ran."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    #: Processor time of the same runs, of all threads; other load of the machine hardly changes it.
    ours_processor: list[float] = field(default_factory=list)
    reference_processor: list[float] = field(default_factory=list)

    @property
    def processor_overhead(self) -> float:
        """Processor time of ours over that of the reference, medians."""
        return median(self.ours_processor) / median(self.reference_processor)

    @property
    def ours_s(self) -> float:
        return median(self.ours)

    @property
    def reference_s(self) -> float:
        return median(self.reference)


class Harness:
    """Argument of ``run(harness)`` of a benchmark.

    Args:
        repeats: timed runs of each side; a benchmark may pass its own number to :meth:`compare`.
        threads: threads of each numeric library, pinned before it was imported.
        full: whether slow references run on the whole input instead of a sample.
        scale: whether to show how time and memory grow instead; few benchmarks can.
    """

    def __init__(
        self, *, repeats: int = 5, threads: int = 1, full: bool = False, scale: bool = False
    ):
        self.repeats = repeats
        self.threads = threads
        self.full = full
        self.scale = scale

    def say(self, message: str) -> None:
        """Print a line of progress at once; standard error, so that rows can be piped."""
        print(message, file=sys.stderr, flush=True)

    def compare(
        self,
        ours: Callable,
        reference: Callable,
        *,
        setup: Optional[Callable] = None,
        repeats: Optional[int] = None,
        warmup: int = 1,
    ) -> Timing:
        """Time two functions in turn: ours, reference, ours, reference, ...

        Alternating spreads other load of the machine over both sides. The garbage collector is
        off while a function runs. ``setup``, if given, is called (untimed) before every run and
        its value is the only argument of the function; otherwise there is none. ``warmup`` runs
        of each side come first and do not count.
        """
        timing = Timing()
        for turn in range(warmup + (repeats or self.repeats)):
            seconds_ours, processor_ours = self._time(ours, setup)
            seconds_reference, processor_reference = self._time(reference, setup)
            if turn >= warmup:
                timing.ours.append(seconds_ours)
                timing.reference.append(seconds_reference)
                timing.ours_processor.append(processor_ours)
                timing.reference_processor.append(processor_reference)
        return timing

    def time(
        self,
        function: Callable,
        *,
        setup: Optional[Callable] = None,
        repeats: Optional[int] = None,
        warmup: int = 1,
    ) -> list[float]:
        """Seconds of each counted run of one function; see :meth:`compare`."""
        runs = warmup + (repeats or self.repeats)
        return [self._time(function, setup)[0] for _ in range(runs)][warmup:]

    def row(
        self,
        case: str,
        *,
        ours_s: float,
        reference_s: float,
        equal: Optional[bool],
        limit: float,
        ratio_is: str,
        **extra,
    ) -> dict:
        """Make a row that compares two times.

        ``equal`` is whether the two results agree as the case demands; None where the two do
        different things and only time is compared. ``extra`` goes into the row as it is.
        """
        if ratio_is == "speed-up":
            ratio = reference_s / ours_s
            within = ratio >= limit
        elif ratio_is == "overhead":
            ratio = ours_s / reference_s
            within = ratio <= limit
        else:
            raise ValueError(f"ratio_is is {ratio_is!r}; a row of times takes speed-up or overhead")
        return {
            "case": case,
            "ours_s": ours_s,
            "reference_s": reference_s,
            "ratio": ratio,
            "ratio_is": ratio_is,
            "equal": None if equal is None else bool(equal),
            "limit": limit,
            "ok": bool(within and equal is not False),
            **extra,
        }

    def value_row(self, case: str, *, value: float, unit: str, limit: float, **extra) -> dict:
        """Make a row for a quantity that is not a time and must be at most ``limit``."""
        return {
            "case": case,
            "ours_s": None,
            "reference_s": None,
            "ratio": None,
            "ratio_is": "value",
            "value": value,
            "unit": unit,
            "equal": None,
            "limit": limit,
            "ok": bool(value <= limit),
            **extra,
        }

    def pin_torch(self) -> None:
        """Pin torch's threads, if the benchmark has imported it."""
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(self.threads)

    def versions(self) -> dict:
        """Versions and machine."""
        versions = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "processor": _processor(),
            "threads": self.threads,
        }
        for package in ("numpy", "torch", "torchvision", "detectron2"):
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = None
        return versions

    def print_rows(self, rows: list[dict]) -> None:
        """Print the rows for people."""
        for row in rows:
            print(("ok    " if row["ok"] else "FAILED") + " " + row["case"])
            if row["ratio_is"] == "value":
                print(f"         {row['value']:.3f} {row['unit']}, limit {row['limit']}")
                continue
            sign = ">=" if row["ratio_is"] == "speed-up" else "<="
            print(
                f"         ours {row['ours_s']:.6f} s, reference {row['reference_s']:.6f} s, "
                f"{row['ratio_is']} {row['ratio']:.3f} (limit {sign} {row['limit']}), "
                f"equal: {row['equal']}"
                + (f", of processor time {row['processor']:.3f}" if "processor" in row else "")
            )

    def _time(self, function: Callable, setup: Optional[Callable]) -> tuple[float, float]:
        """Seconds and seconds of processor time of one run."""
        arguments = () if setup is None else (setup(),)
        gc.collect()
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            start, processor = time.perf_counter(), time.process_time()
            function(*arguments)
            return time.perf_counter() - start, time.process_time() - processor
        finally:
            if was_enabled:
                gc.enable()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()

"""Prototypes by joint matching pursuit against their direct definition: same picks, less time.

Of 800 instances, 256-d in each space, 288 are candidates: the share that two independent density
filters at the 40th percentile leave. ``--scale`` measures the growth to 10,000 candidates and
50,000 instances, where the definition would need 512 GB for each tensor and a table of inner
products 4 GB: memory must not grow with the instances, nor time with the product of both numbers.
"""

import json
import os
import resource
import subprocess
import sys
import time

import torch
from _prototypes_reference import direct_picks
from torch.nn.functional import normalize

from kd_search.losses import density_filter, select_prototypes

NUM_CANDIDATES, NUM_INSTANCES, NUM_DIMS = 288, 800, 256
NUM_PROTOTYPES, ALPHA = 10, 10.0
LEAST_SPEED_UP = 50
# The definition takes seconds for a run.
REPEATS = 3

NUM_CLUSTERS = 40
# Candidates, instances.
SMALL, WIDE, LARGE = (1_000, 5_000), (10_000, 10_000), (10_000, 50_000)
# 10,000 candidates of twice 256 numbers in float64 are 41 MB; a few copies of them, and blocks.
MEMORY_MB = 200.0
FLAT = 1.1
# From SMALL to LARGE there are ten times as many of both; a table of both would grow 100 times.
GROWTH = 15.0


def run(harness):
    if harness.scale:
        return scale_rows(harness)
    student, teacher = make_instances(NUM_INSTANCES)
    candidates = torch.arange(NUM_CANDIDATES)
    picks = {}

    def ours():
        found = select_prototypes(
            student, teacher, candidates, num_prototypes=NUM_PROTOTYPES, alpha=ALPHA
        )
        picks["ours"] = found.indices.tolist()

    def reference():
        picks["reference"] = direct_picks(student, teacher, candidates, NUM_PROTOTYPES, ALPHA)

    timing = harness.compare(ours, reference, repeats=min(REPEATS, harness.repeats))
    return [
        harness.row(
            f"{NUM_PROTOTYPES} prototypes of {NUM_CANDIDATES} candidates, {NUM_INSTANCES} "
            f"instances, {NUM_DIMS}-d; the same picks",
            ours_s=timing.ours_s,
            reference_s=timing.reference_s,
            equal=picks["ours"] == picks["reference"],
            limit=LEAST_SPEED_UP,
            ratio_is="speed-up",
            picks=picks["ours"],
        )
    ]


def scale_rows(harness):
    found = {}
    for size in (SMALL, WIDE, LARGE):
        found[size] = _measure_in_a_process(size)
        harness.say(
            "{:,} candidates, {:,} instances: ".format(*size)
            + "pursuit {pursuit_s:.2f} CPU seconds, {pursuit_mb:.0f} MB; density of the "
            "candidates {density_s:.2f} CPU seconds, {density_mb:.0f} MB".format(**found[size])
        )
    large = found[LARGE]
    case = "{:,} candidates, {:,} instances: ".format(*LARGE)
    return [
        harness.value_row(
            case + "memory of the pursuit beyond the features",
            value=large["pursuit_mb"],
            unit="MB",
            limit=MEMORY_MB,
            seconds=large["pursuit_s"],
        ),
        harness.value_row(
            case + f"the same over that at {WIDE[1]:,} instances",
            value=large["pursuit_mb"] / found[WIDE]["pursuit_mb"],
            unit="times",
            limit=FLAT,
            seconds=found[WIDE]["pursuit_s"],
        ),
        harness.value_row(
            case + "CPU time of the pursuit over that at a tenth of both",
            value=large["pursuit_s"] / found[SMALL]["pursuit_s"],
            unit="times",
            limit=GROWTH,
            seconds=found[SMALL]["pursuit_s"],
        ),
        harness.value_row(
            case + "memory of the density filter over the candidates, beyond the features",
            value=large["density_mb"],
            unit="MB",
            limit=MEMORY_MB,
            seconds=large["density_s"],
        ),
    ]


def make_instances(count, seed=0):
    """Draw unit features in two spaces, block by block: common clusters, and noise of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, NUM_CLUSTERS, NUM_DIMS, generator=generator)
    spaces = torch.empty(2, count, NUM_DIMS)
    for start in range(0, count, 5_000):
        block = spaces[:, start : start + 5_000]
        cluster = torch.randint(NUM_CLUSTERS, (block.shape[1],), generator=generator)
        noise = torch.randn(block.shape, generator=generator)
        block.copy_(normalize(centres[:, cluster] + noise, dim=2))
    return spaces[0], spaces[1]


def _measure_in_a_process(size):
    """Measure time and memory in a new process, so that sizes do not share an allocator."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import torch; "
        f"torch.set_num_threads({torch.get_num_threads()}); "
        f"import prototypes; prototypes.report({size[0]}, {size[1]})"
    )
    # With it glibc returns every block of a megabyte at once: the peak is the memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(num_candidates, num_instances):
    """Measure one size and print it as JSON."""
    few = make_instances(200)  # a warm-up: memory that libraries allocate once is not counted
    density_filter(*few)
    select_prototypes(*few)
    student, teacher = make_instances(num_instances)
    candidates = torch.arange(num_candidates)
    part = student[:num_candidates], teacher[:num_candidates]
    found = {}
    for name, function in (
        ("pursuit", lambda: select_prototypes(student, teacher, candidates)),
        ("density", lambda: density_filter(*part)),
    ):
        before = _start_peak()
        # Processor time: independent of other load.
        start = time.process_time()
        function()
        found[f"{name}_s"] = time.process_time() - start
        found[f"{name}_mb"] = (_peak() - before) / 1e6
    print(json.dumps(found))


def _start_peak():
    """Forget the peak so far, where the system can (Linux), and return the memory in use, bytes."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass
    return _peak()


def _peak():
    """Peak of resident memory in bytes."""
    try:
        with open("/proc/self/status") as lines:
            status = dict(line.split(":", 1) for line in lines)
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        # Bytes on macOS, kilobytes elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

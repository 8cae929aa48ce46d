"""A registered re-ID set and the outputs of a network that never was."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

EMBEDDING_DIM = 6


def make_samples(count=30, seed=0, frames=3):
    """Tracklets of five people in three cameras; every third is a query, one a distractor."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        person = int(rng.integers(5)) if number != 7 else -1
        samples.append(
            {
                "sample_id": number,
                "file_names": [f"{number}_{frame}.jpg" for frame in range(frames)],
                "boxes": None,
                "person_id": person,
                "camera_id": int(rng.integers(3)),
                "tracklet_id": number,
                "role": ("query", "gallery", "both")[number % 3] if person >= 0 else "gallery",
                "frame_id": int(rng.integers(20)),
            }
        )
    return samples


def register(name, samples, **metadata):
    """Register samples and metadata again; return the name."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(evaluator_type="reid", **metadata)
    return name


def embedding(sample, frames, seed=1):
    """(D,) direction of the person plus noise of the frames."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(6, EMBEDDING_DIM, generator=random)
    parts = []
    for frame in frames:
        random.manual_seed(1000 * sample["sample_id"] + frame)
        parts.append(0.8 * torch.randn(EMBEDDING_DIM, generator=random))
    return directions[sample["person_id"]] + torch.stack(parts).mean(dim=0)


def run_network(samples, gallery_images="first"):
    """(inputs, outputs) as the test loader and the network give them for every setting.

    A sample is a video of all its frames; its first frame, or each one of a gallery, is an image.
    """
    inputs, outputs = [], []
    for sample in samples:
        length = len(sample["file_names"])
        everything = gallery_images == "all" and sample["role"] != "query"
        images = range(length) if everything else (0,)
        kept = ("sample_id", "person_id", "camera_id", "tracklet_id", "role", "frame_id")
        for frames, views in [((frame,), ("image",)) for frame in images] + [
            (range(length), ("video",))
        ]:
            inputs.append(
                {
                    **{key: sample[key] for key in kept},
                    "frames": torch.zeros(len(frames), 3, 2, 2),
                    "file_names": [sample["file_names"][frame] for frame in frames],
                    "views": views,
                }
            )
            outputs.append({"embedding": embedding(sample, frames)})
    return inputs, outputs

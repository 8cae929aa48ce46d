"""Little re-ID sets on disk."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_images():
    """``write_images(folder, names, size=(16, 32))`` writes noise that depends on the name."""

    def write(folder, names, size=(16, 32)):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            rng = np.random.default_rng(sum(name.encode()))
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        return folder

    return write


@pytest.fixture
def crops(tmp_path, write_images):
    """Six people in cameras 1 to 3 with 1, 2, 3, 4, 5 and 6 crops in each, as PNG."""
    names = [
        f"{person:04d}_c{camera}s1_{200 * shot + 25 * camera:06d}_01.png"
        for person in range(1, 7)
        for camera in range(1, 4)
        for shot in range(person)
    ]
    return write_images(tmp_path / "crops", names)

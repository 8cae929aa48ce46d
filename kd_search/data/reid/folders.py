"""Lists image folders and reads lists of names, with errors that say what is missing."""

import os

from detectron2.utils.file_io import PathManager

_IMAGE_ENDS = (".jpg", ".jpeg", ".png", ".bmp")


def datasets_root(folder: str) -> str:
    """``folder`` below ``$DETECTRON2_DATASETS``, or below ``datasets`` as in Detectron2."""
    return os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), folder)


def require_folder(path: str, hint: str = "") -> str:
    """
    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder" + (f"; {hint}" if hint else ""))
    return path


def require_file(path: str, hint: str = "") -> str:
    """
    Raises:
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file" + (f"; {hint}" if hint else ""))
    return path


def image_names(folder: str, hint: str = "") -> list[str]:
    """Names of the image files of a folder, sorted; other files are passed over.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    require_folder(folder, hint)
    return sorted(
        name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in _IMAGE_ENDS
    )


def folder_names(folder: str, hint: str = "") -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    require_folder(folder, hint)
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def read_lines(path: str, hint: str = "") -> list[str]:
    """Lines of a text file without blanks at their ends; empty ones are left out.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or no text.
    """
    require_file(path, hint)
    try:
        with PathManager.open(path, "r", encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    return [line for line in lines if line]

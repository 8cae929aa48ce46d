"""Install Detectron2 0.5 as pure Python, unless some Detectron2 already imports.

Detectron2 is not on the package index under its own name. The index has its 0.5 source as
``detectron2-cdo``, without the C++ part. This script fetches that archive, checks its hash, applies
``detectron2_patches.PATCHES``, imports the result from a temporary folder, and then installs it as
a wheel. No code of the archive runs before its hash is checked. An error before the last step
leaves the environment unchanged.

This module needs the standard library alone, and works before kd_search's requirements are
installed. The exit status is 0 if a Detectron2 imports at the end, and 2 otherwise, with the reason
in one line on stderr.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import io
import os
import posixpath
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from kd_search.cli._arguments import command_parser
from kd_search.cli.detectron2_patches import (
    COMPILED_MODULE_FILE,
    COMPILED_MODULE_STAND_IN,
    PATCHES,
    PROJECT_FOLDERS,
    REQUIREMENTS,
    Patch,
)

PROJECT = "detectron2-cdo"
VERSION = "0.5"
ARCHIVE_NAME = r"detectron2[-_]cdo-0\.5\.tar\.gz"
SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
OWN_BUILD = VERSION + "+purepython"
# The local part of the version identifies this build in `pip list`, and the table of patches that
# it was made with.
WHEEL_VERSION = "{}.t{}".format(
    OWN_BUILD,
    hashlib.sha256(
        repr((PATCHES, COMPILED_MODULE_STAND_IN, PROJECT_FOLDERS, REQUIREMENTS)).encode()
    ).hexdigest()[:8],
)
SUPPORTED_PYTHON = ((3, 9), (3, 13))
MAX_ARCHIVE_BYTES = 20_000_000
# A Detectron2 that imports these packages is kept. The export package is not among them, because
# that of a working, compiled upstream 0.6 may fail without caffe2.
NEEDED_PACKAGES = "checkpoint config data engine evaluation layers modeling solver structures utils"
BUILT_PACKAGES = NEEDED_PACKAGES + " export model_zoo utils.visualizer"


class InstallError(Exception):
    """An error that stops the installation; its text is shown to the user."""


def check_python(version: tuple[int, ...] | None = None) -> None:
    """Raise InstallError unless ``version`` (default: this Python's) is supported."""
    version = version[:2] if version else sys.version_info[:2]
    oldest, newest = SUPPORTED_PYTHON
    if not oldest <= version <= newest:
        raise InstallError(
            f"Python {_dotted(version)} is not supported: "
            f"use {_dotted(oldest)} to {_dotted(newest)}"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def run_python(*arguments: str, extra_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python with ``arguments`` outside of the checkout, and capture its output."""
    env = dict(os.environ)
    if extra_path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(extra_path), env.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        env=env,
        cwd=sys.prefix,  # a folder without modules
        capture_output=True,
        text=True,
        check=False,
    )


def import_check(packages: str) -> str:
    """Return a line of Python that imports these packages of Detectron2."""
    return "import " + ", ".join("detectron2." + package for package in packages.split())


def last_line(text: str) -> str:
    """Return the last line of ``text`` that is not blank, the error in a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def check_torch() -> None:
    """Raise InstallError unless torch and torchvision import."""
    result = run_python("-c", "import torch, torchvision")
    if result.returncode:
        raise InstallError(
            "Detectron2 needs torch and a torchvision that matches it "
            "(pip install -r requirements.txt first): " + last_line(result.stderr)
        )


def installed_detectron2() -> tuple[str | None, str]:
    """Return (version, folder) of the Detectron2 that imports, or (None, error)."""
    result = run_python(
        "-c",
        import_check(NEEDED_PACKAGES) + "; print(detectron2.__version__, detectron2.__file__)",
    )
    if result.returncode:
        return None, last_line(result.stderr)
    version, where = last_line(result.stdout).split(" ", 1)
    return version, str(Path(where).parent)


def outdated_own_build() -> str | None:
    """Return the version of an installed build of this script with another table of patches."""
    try:
        version = metadata.version("detectron2")
    except metadata.PackageNotFoundError:
        return None
    return version if version.startswith(OWN_BUILD) and version != WHEEL_VERSION else None


def find_archive_url() -> str:
    """Return the URL of the archive from pip, with its configured index, proxy and login.

    ``pip download`` cannot fetch it: pip runs the archive's setup.py for its metadata and then
    rejects an optional requirement in it.
    """
    result = run_python(
        *("-m", "pip", "index", "versions", PROJECT, "--no-binary", ":all:"),
        *("-vv", "--retries", "2", "--disable-pip-version-check"),
    )
    output = result.stdout + result.stderr
    found = re.search(rf"Found link (\S*/{ARCHIVE_NAME})(?=[#\s])", output)
    if found:
        return found.group(1)
    failure = re.search(r"Could not fetch URL .*", output)
    raise InstallError(
        f"{PROJECT} {VERSION} cannot be found on pip's package index; check the network and pip's "
        "settings, or name the archive with --archive: "
        + (failure.group() if failure else last_line(result.stderr))
    )


def pip_setting(name: str) -> str | None:
    """Return a setting of pip ('cert', 'proxy') from its environment variables or files."""
    if os.environ.get("PIP_" + name.upper()):
        return os.environ["PIP_" + name.upper()]
    result = run_python("-m", "pip", "config", "list")
    found = re.findall(rf"^\S+\.{name}='(.*)'$", result.stdout, re.MULTILINE)
    return found[-1] if found else None


def download(url: str, attempts: int = 3) -> bytes:
    """Return the bytes at ``url``."""
    https = urllib.request.HTTPSHandler(context=_ssl_context())
    handlers: list[urllib.request.BaseHandler] = [https]
    proxy = pip_setting("proxy")
    if proxy:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    opener = urllib.request.build_opener(*handlers)
    for attempt in range(1, attempts + 1):
        try:
            with opener.open(url, timeout=60) as response:
                data = response.read(MAX_ARCHIVE_BYTES + 1)
            break
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            if attempt == attempts:
                raise InstallError(f"the archive cannot be fetched from {url}: {error}") from error
            time.sleep(attempt)
    if len(data) > MAX_ARCHIVE_BYTES:
        raise InstallError(f"{url} has more than {MAX_ARCHIVE_BYTES} bytes: not the archive")
    return data


def _ssl_context() -> ssl.SSLContext:
    cert = pip_setting("cert")
    if cert and not os.path.exists(cert):
        raise InstallError(f"the certificate file {cert} of pip's settings does not exist")
    return ssl.create_default_context(cafile=cert)


def check_hash(archive: bytes) -> None:
    """Raise InstallError unless the archive has the expected hash."""
    actual = hashlib.sha256(archive).hexdigest()
    if actual != SHA256:
        raise InstallError(
            f"the archive is not the expected one: its sha256 is {actual}, not {SHA256}"
        )


def read_archive(archive: bytes) -> dict[str, bytes]:
    """Return {path in the wheel: content} of the package's files in the source archive."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                path = member.name.partition("/")[2]
                for source, destination in PROJECT_FOLDERS.items():
                    if path.startswith(source):
                        path = destination + path[len(source) :]
                if member.isfile() and (path.startswith("detectron2/") or path == "LICENSE"):
                    if path != posixpath.normpath(path):
                        raise tarfile.TarError(f"it contains the path {member.name}")
                    content = tar.extractfile(member)
                    assert content is not None  # it is, of folders and devices
                    files[path] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InstallError(f"the archive cannot be unpacked: {error}") from error
    return files


def apply_patches(files: dict[str, bytes], patches: Iterable[Patch]) -> dict[str, bytes]:
    """Return a copy of ``files`` with every patch applied, or raise InstallError."""
    patched = dict(files)
    for patch in patches:
        text = patched.get(patch.file, b"").decode("utf-8")
        count = text.count(patch.old)
        if count != patch.count:
            raise InstallError(
                f"a patch of {patch.file} ({patch.why}) expects {patch.old.strip()!r} "
                f"{patch.count} times and finds it {count} times"
            )
        patched[patch.file] = text.replace(patch.old, patch.new).encode("utf-8")
    if COMPILED_MODULE_FILE in patched:
        raise InstallError(f"the archive already contains {COMPILED_MODULE_FILE}")
    patched[COMPILED_MODULE_FILE] = COMPILED_MODULE_STAND_IN.encode("utf-8")
    return patched


def write_tree(files: dict[str, bytes], folder: Path) -> None:
    """Write ``files`` below ``folder``."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def write_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write a pure-Python wheel of ``files`` into ``folder`` (same files, same bytes)."""
    dist_info = f"detectron2-{WHEEL_VERSION}.dist-info"
    content = {path: data for path, data in files.items() if path != "LICENSE"}
    content[f"{dist_info}/LICENSE"] = files.get("LICENSE", b"")
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {WHEEL_VERSION}",
        "Summary: Detectron2 0.5, patched by kd_search to run as pure Python on today's libraries",
        "License: Apache-2.0",
        f"Requires-Python: >={_dotted(SUPPORTED_PYTHON[0])}",
        *("Requires-Dist: " + requirement for requirement in REQUIREMENTS),
    ]
    content[f"{dist_info}/METADATA"] = "\n".join([*metadata, ""]).encode()
    content[f"{dist_info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: kd_search\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = []
    wheel = folder / f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"
    unfinished = wheel.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(path: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(path, date_time=(2021, 7, 24, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)

        for path, data in sorted(content.items()):
            add(path, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(data)}")
        record.append(f"{dist_info}/RECORD,,")
        add(f"{dist_info}/RECORD", "\n".join([*record, ""]).encode())
    os.replace(unfinished, wheel)
    return wheel


def check_tree_imports(folder: Path) -> None:
    """Raise InstallError unless the patched tree in ``folder`` imports, before it is installed."""
    result = run_python("-c", import_check(BUILT_PACKAGES), extra_path=folder)
    if result.returncode:
        raise InstallError(
            "the patched Detectron2 does not import here (pip install -r requirements.txt first; "
            "nothing was installed): " + last_line(result.stderr)
        )


def install_wheel(wheel: Path) -> None:
    """Install the wheel alone, and check that Detectron2 now imports."""
    result = run_python(
        *("-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall"),
        *("--disable-pip-version-check", str(wheel)),
    )
    if result.returncode:
        raise InstallError("pip could not install the wheel: " + last_line(result.stderr))
    version, where = installed_detectron2()
    if version is None:
        raise InstallError("the installed Detectron2 does not import: " + where)


def install(archive_file: Path | None = None, wheel_dir: Path | None = None) -> None:
    """Install Detectron2 unless one imports; raise InstallError if that fails."""
    check_python()
    check_torch()
    if wheel_dir is None:
        version, where = installed_detectron2()
        outdated = outdated_own_build()
        if version is not None and outdated is None:
            print(f"Detectron2 {version} is installed and kept: {where}")
            return
        reason = f"{outdated} has other patches" if outdated else f"no Detectron2 imports: {where}"
        print(f"Building Detectron2 {VERSION} from {PROJECT} ({reason})", flush=True)
    if archive_file is None:
        url = find_archive_url()
        print(f"Fetching {urllib.parse.urlsplit(url).path.rpartition('/')[2]}", flush=True)
        archive = download(url)
    else:
        try:
            archive = archive_file.read_bytes()
        except OSError as error:
            raise InstallError(f"the archive cannot be read: {error}") from error
    check_hash(archive)
    files = apply_patches(read_archive(archive), PATCHES)
    print(f"Applied {len(PATCHES)} patches; trying the result", flush=True)
    with tempfile.TemporaryDirectory(prefix="detectron2-") as temporary:
        tree = Path(temporary, "tree")
        write_tree(files, tree)
        check_tree_imports(tree)
        if wheel_dir is not None:
            wheel_dir.mkdir(parents=True, exist_ok=True)
            print("Wrote", write_wheel(files, wheel_dir))
            return
        install_wheel(write_wheel(files, Path(temporary)))
    print(f"Installed Detectron2 {WHEEL_VERSION}")


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("install-detectron2", __doc__.partition("\n")[0])
    parser.add_argument(
        "--archive", type=Path, help=f"a copy of {PROJECT}-{VERSION}.tar.gz instead of the index"
    )
    parser.add_argument(
        "--wheel-dir", type=Path, help="write the wheel into this folder instead of installing it"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = get_parser().parse_args(argv)
    try:
        install(args.archive, args.wheel_dir)
    except InstallError as error:
        print(f"install-detectron2: {error}", file=sys.stderr)
        return 2
    return 0

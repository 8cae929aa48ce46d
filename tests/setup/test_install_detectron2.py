"""kd-search install-detectron2: what it builds, what it keeps and what it refuses. No network."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import types
import zipfile
from importlib import metadata

import pytest

from kd_search.cli import detectron2_patches
from kd_search.cli import install_detectron2 as tool

MODULES = tool.BUILT_PACKAGES.replace("utils.visualizer", "").split()


def make_archive(files, links=()):
    """Return the bytes of a source archive with ``files`` {path: text} under its top folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(f"detectron2_cdo-0.5/{path}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
        for path, target in links:
            info = tarfile.TarInfo(f"detectron2_cdo-0.5/{path}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def package_files():
    """Return the files of a package that passes the import check, with one place to patch."""
    files = {f"detectron2/{module}/__init__.py": "" for module in MODULES}
    files["detectron2/__init__.py"] = '__version__ = "0.5"\n'
    files["detectron2/utils/visualizer.py"] = "dtype = 'np.bool'\n"
    files["LICENSE"] = "the licence\n"
    return files


@pytest.fixture
def no_torch_check(monkeypatch):
    """Leave out the slow import of torch, and of the Detectron2 of this environment."""
    monkeypatch.setattr(tool, "check_torch", lambda: None)
    monkeypatch.setattr(tool, "installed_detectron2", lambda: (None, "no module"))


@pytest.fixture
def installed(monkeypatch):
    """Return the list of {path: content} of every wheel that the tool tried to install."""
    wheels = []

    def record(wheel):
        with zipfile.ZipFile(wheel) as archive:
            wheels.append({name: archive.read(name) for name in archive.namelist()})

    monkeypatch.setattr(tool, "install_wheel", record)
    return wheels


@pytest.fixture
def one_patch(monkeypatch):
    """Replace the table by one patch that fits ``package_files``."""
    patch = tool.PATCHES[0]._replace(
        file="detectron2/utils/visualizer.py", old="np.bool", new="bool", count=1, why="NumPy"
    )
    monkeypatch.setattr(tool, "PATCHES", (patch,))
    return patch


def run_with_archive(monkeypatch, tmp_path, data, *arguments):
    """Run the command line on an archive file whose hash is accepted."""
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(data)
    monkeypatch.setattr(tool, "SHA256", hashlib.sha256(data).hexdigest())
    return tool.main(["--archive", str(archive), *arguments])


def only_error_line(capsys):
    """Return the one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("install-detectron2: ")
    return lines[0]


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 18), (3, 14, 0)])
def test_unsupported_python_is_refused(version):
    with pytest.raises(tool.InstallError, match=r"3\.9 to 3\.13"):
        tool.check_python(version)


@pytest.mark.parametrize("version", [(3, 9, 0), (3, 11, 7), (3, 13, 2)])
def test_supported_python_is_accepted(version):
    tool.check_python(version)


def test_missing_torch_is_one_line_and_nothing_is_fetched(monkeypatch, capsys, installed):
    monkeypatch.setattr(tool, "find_archive_url", lambda: pytest.fail("looked for the archive"))
    traceback = "Traceback ...\nModuleNotFoundError: No module named 'torch'\n"
    failed = subprocess.CompletedProcess([], 1, "", traceback)
    monkeypatch.setattr(tool, "run_python", lambda *arguments: failed)
    assert tool.main([]) == 2
    assert only_error_line(capsys).endswith("ModuleNotFoundError: No module named 'torch'")
    assert not installed


def test_a_detectron2_that_imports_is_kept(monkeypatch, capsys, installed):
    monkeypatch.setattr(tool, "check_torch", lambda: None)
    monkeypatch.setattr(tool, "installed_detectron2", lambda: ("0.6", "/somewhere/detectron2"))
    monkeypatch.setattr(tool, "outdated_own_build", lambda: None)
    monkeypatch.setattr(tool, "find_archive_url", lambda: pytest.fail("looked for the archive"))
    assert tool.main([]) == 0
    assert "/somewhere/detectron2" in capsys.readouterr().out
    assert not installed


@pytest.mark.parametrize(
    ("version", "outdated"),
    [
        (tool.WHEEL_VERSION, False),
        (tool.OWN_BUILD + ".t00000000", True),
        ("0.5", False),  # somebody else's, as the next ones
        ("0.6", False),
        ("0.6+pt2.4.1cu121", False),
    ],
)
def test_only_an_own_build_of_other_patches_is_outdated(monkeypatch, version, outdated):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert tool.outdated_own_build() == (version if outdated else None)


def test_an_outdated_own_build_is_replaced(monkeypatch, tmp_path, installed, one_patch):
    monkeypatch.setattr(tool, "check_torch", lambda: None)
    monkeypatch.setattr(tool, "installed_detectron2", lambda: ("0.5", "/somewhere/detectron2"))
    monkeypatch.setattr(tool, "outdated_own_build", lambda: "0.5+purepython.t00000000")
    assert run_with_archive(monkeypatch, tmp_path, make_archive(package_files())) == 0
    assert len(installed) == 1


def test_bad_hash_is_refused_before_anything_is_unpacked(
    monkeypatch, capsys, tmp_path, no_torch_check, installed
):
    monkeypatch.setattr(tool, "read_archive", lambda data: pytest.fail("unpacked"))
    (tmp_path / "archive.tar.gz").write_bytes(b"something else")
    assert tool.main(["--archive", str(tmp_path / "archive.tar.gz")]) == 2
    line = only_error_line(capsys)
    assert hashlib.sha256(b"something else").hexdigest() in line and tool.SHA256 in line
    assert not installed


def test_missing_archive_file_is_one_line(capsys, tmp_path, no_torch_check):
    assert tool.main(["--archive", str(tmp_path / "absent.tar.gz")]) == 2
    assert "absent.tar.gz" in only_error_line(capsys)


def test_no_network_is_one_line(monkeypatch, capsys, no_torch_check, installed):
    output = "Could not fetch URL index/detectron2-cdo/: connection error: no name - skipping\n"
    failed = subprocess.CompletedProcess([], 1, output, "ERROR: No matching distribution found\n")
    monkeypatch.setattr(tool, "run_python", lambda *arguments: failed)
    assert tool.main([]) == 2
    line = only_error_line(capsys)
    assert "check the network" in line and "connection error: no name" in line
    assert not installed


def test_refused_connection_is_one_line(monkeypatch):
    monkeypatch.setattr(tool, "pip_setting", lambda name: None)
    with pytest.raises(tool.InstallError, match="http://127.0.0.1:9/a.gz"):
        tool.download("http://127.0.0.1:9/a.gz", attempts=1)


def test_download_returns_the_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "pip_setting", lambda name: None)
    (tmp_path / "a.gz").write_bytes(b"\0\1\2")
    assert tool.download((tmp_path / "a.gz").as_uri()) == b"\0\1\2"


@pytest.mark.parametrize(
    ("line", "url"),
    [
        (
            "  Found link https://host/x/detectron2_cdo-0.5.tar.gz#sha256=53c9 (from y)",
            "https://host/x/detectron2_cdo-0.5.tar.gz",
        ),
        (
            "Found link file:///mirror/detectron2-cdo-0.5.tar.gz (from y), version: 0.5",
            "file:///mirror/detectron2-cdo-0.5.tar.gz",
        ),
    ],
)
def test_the_archive_is_found_in_what_pip_says(monkeypatch, line, url):
    other = "Found link https://host/detectron2_cdo-0.4.tar.gz#sha256=0 (from y), version: 0.4\n"
    said = subprocess.CompletedProcess([], 0, other + line + "\n", "")
    monkeypatch.setattr(tool, "run_python", lambda *arguments: said)
    assert tool.find_archive_url() == url


def test_another_version_on_the_index_is_not_taken(monkeypatch):
    said = subprocess.CompletedProcess([], 0, "Found link https://h/detectron2_cdo-0.6.tar.gz#", "")
    monkeypatch.setattr(tool, "run_python", lambda *arguments: said)
    with pytest.raises(tool.InstallError, match="cannot be found"):
        tool.find_archive_url()


def test_pip_settings_come_from_the_environment_or_the_files(monkeypatch):
    listed = "global.index-url='https://host/simple'\nglobal.proxy='http://proxy:3128'\n"
    said = subprocess.CompletedProcess([], 0, listed, "")
    monkeypatch.setattr(tool, "run_python", lambda *arguments: said)
    monkeypatch.setenv("PIP_CERT", "/ca.pem")
    monkeypatch.delenv("PIP_PROXY", raising=False)
    assert tool.pip_setting("cert") == "/ca.pem"
    assert tool.pip_setting("proxy") == "http://proxy:3128"
    assert tool.pip_setting("client_cert") is None


@pytest.mark.parametrize("occurrences", [0, 1, 3])
def test_a_patch_that_matches_another_number_of_times_stops(occurrences, one_patch):
    files = {one_patch.file: b"np.bool\n" * occurrences}
    patch = one_patch._replace(count=2)
    with pytest.raises(
        tool.InstallError, match=f"visualizer.py .*2 times and finds it {occurrences} times"
    ):
        tool.apply_patches(files, [patch])


def test_a_patch_of_a_missing_file_stops(one_patch):
    with pytest.raises(tool.InstallError, match="finds it 0 times"):
        tool.apply_patches({}, [one_patch])


def test_patches_change_only_what_they_name(one_patch):
    files = {one_patch.file: b"np.bool\nnp.bool\n", "detectron2/other.py": b"np.bool\n"}
    patched = tool.apply_patches(files, [one_patch._replace(count=2)])
    assert patched[one_patch.file] == b"bool\nbool\n"
    assert patched["detectron2/other.py"] == b"np.bool\n"
    assert files[one_patch.file] == b"np.bool\nnp.bool\n"


def test_an_archive_with_a_compiled_module_stops():
    with pytest.raises(tool.InstallError, match="_C.py"):
        tool.apply_patches({tool.COMPILED_MODULE_FILE: b""}, [])


def test_a_patch_that_does_not_match_leaves_nothing_installed(
    monkeypatch, capsys, tmp_path, no_torch_check, installed, one_patch
):
    files = package_files()
    files[one_patch.file] = "dtype = bool\n"
    assert run_with_archive(monkeypatch, tmp_path, make_archive(files)) == 2
    assert "1 times and finds it 0 times" in only_error_line(capsys)
    assert not installed


def test_the_archive_gives_the_package_the_projects_and_the_licence():
    data = make_archive(
        {
            "detectron2/a.py": "a",
            "projects/PointRend/point_rend/b.py": "b",
            "projects/PointRend/train_net.py": "c",
            "setup.py": "d",
            "LICENSE": "e",
        },
        links=[("detectron2/link.py", "/etc/passwd")],
    )
    assert tool.read_archive(data) == {
        "detectron2/a.py": b"a",
        "detectron2/projects/point_rend/b.py": b"b",
        "LICENSE": b"e",
    }


@pytest.mark.parametrize("path", ["detectron2/../../evil.py", "detectron2/./a.py"])
def test_an_archive_that_leaves_its_folder_stops(path):
    with pytest.raises(tool.InstallError, match="cannot be unpacked"):
        tool.read_archive(make_archive({path: "evil"}))


def test_a_truncated_archive_is_one_line():
    data = make_archive({f"detectron2/{number}.py": str(number) for number in range(100)})
    with pytest.raises(tool.InstallError, match="cannot be unpacked"):
        tool.read_archive(data[: len(data) // 2])


def test_a_tree_that_does_not_import_is_not_installed(
    monkeypatch, capsys, tmp_path, no_torch_check, installed, one_patch
):
    files = package_files()
    files["detectron2/layers/__init__.py"] = "import no_such_module_of_anybody\n"
    assert run_with_archive(monkeypatch, tmp_path, make_archive(files)) == 2
    assert "No module named 'no_such_module_of_anybody'" in only_error_line(capsys)
    assert not installed


def test_a_good_archive_is_patched_and_installed_once(
    monkeypatch, capsys, tmp_path, no_torch_check, installed, one_patch
):
    assert run_with_archive(monkeypatch, tmp_path, make_archive(package_files())) == 0
    (wheel,) = installed
    assert wheel["detectron2/utils/visualizer.py"] == b"dtype = 'bool'\n"
    assert wheel[tool.COMPILED_MODULE_FILE].decode() == tool.COMPILED_MODULE_STAND_IN
    assert wheel[f"detectron2-{tool.WHEEL_VERSION}.dist-info/LICENSE"] == b"the licence\n"
    assert capsys.readouterr().err == ""


def test_the_same_archive_gives_the_same_wheel_and_pip_installs_it(
    monkeypatch, tmp_path, no_torch_check, installed, one_patch
):
    data = make_archive(package_files())
    wheels = []
    for name in ("first", "second"):
        folder = str(tmp_path / name)
        assert run_with_archive(monkeypatch, tmp_path, data, "--wheel-dir", folder) == 0
        (wheel,) = (tmp_path / name).iterdir()
        wheels.append(wheel)
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    assert not installed

    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheels[0])], check=True)
    (distribution,) = metadata.distributions(path=[str(target)])
    assert (distribution.name, distribution.version) == ("detectron2", tool.WHEEL_VERSION)
    assert distribution.requires == list(tool.REQUIREMENTS)
    assert (target / "detectron2" / "_C.py").is_file()


def test_the_record_of_the_wheel_is_right(tmp_path):
    wheel = tool.write_wheel({"detectron2/__init__.py": b"x = 1\n", "LICENSE": b"l"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read(f"detectron2-{tool.WHEEL_VERSION}.dist-info/RECORD").decode()
        rows = dict(line.split(",", 1) for line in record.splitlines())
        assert sorted(rows) == sorted(names)
        for name in names:
            if not name.endswith("/RECORD"):
                digest = hashlib.sha256(archive.read(name)).digest()
                expected = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                assert rows[name] == f"sha256={expected},{len(archive.read(name))}"


def test_the_stand_in_imports_and_names_the_operator_that_is_missing():
    module = types.ModuleType("detectron2._C")
    exec(compile(detectron2_patches.COMPILED_MODULE_STAND_IN, "_C.py", "exec"), module.__dict__)
    assert module.has_cuda() is False
    assert "pure-Python" in module.get_compiler_version()
    with pytest.raises(RuntimeError, match=r"detectron2\._C\.nms_rotated is a compiled operator"):
        module.nms_rotated(1, iou_threshold=0.5)
    assert not hasattr(module, "__path__")


def test_every_patch_says_why_and_changes_something():
    for patch in tool.PATCHES:
        assert patch.why and patch.count >= 1
        assert patch.old != patch.new
        assert patch.file.startswith("detectron2/") and patch.file.endswith(".py")


def test_the_detectron2_that_the_tool_installed_here_carries_every_patch():
    distribution = None
    try:
        distribution = metadata.distribution("detectron2")
    except metadata.PackageNotFoundError:
        pass
    if distribution is None or distribution.version != tool.WHEEL_VERSION:
        pytest.skip("this environment has another Detectron2 than the one the tool makes")
    for patch in tool.PATCHES:
        text = distribution.locate_file(patch.file).read_text(encoding="utf-8")
        assert patch.new in text
        assert patch.old not in text.replace(patch.new, "")

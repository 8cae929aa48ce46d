"""The site: links between pages, docstrings as Markdown, and requests to other hosts."""

import importlib.util
import types

import griffe
import pytest
from mkdocs.exceptions import PluginError
from tiny import REPO


def load(name):
    spec = importlib.util.spec_from_file_location(name, REPO / "tools/docs_site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load("pages")


def rewritten(markdown, uri):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=uri))
    return pages.on_page_markdown(markdown, page, None, None)


@pytest.mark.parametrize(
    ("uri", "link", "expected"),
    [
        ("index.md", "[a](docs/datasets.md#prw)", "[a](datasets.md#prw)"),
        ("index.md", "![a](docs/images/x.jpg)", "![a](images/x.jpg)"),
        ("projects/VKD.md", "[a](../DKD/README.md)", "[a](DKD.md)"),
        ("projects/VKD.md", "[a](../../docs/datasets.md)", "[a](../datasets.md)"),
        ("datasets.md", "[a](../projects/DKD/README.md#b)", "[a](projects/DKD.md#b)"),
        ("datasets.md", "[a](notebooks/n.ipynb)", "[a](notebooks/n.md)"),
        ("datasets.md", "[`a`](../kd_search/outputs.py)", "[`a`][kd_search.outputs]"),
        ("datasets.md", "[a](../kd_search/losses)", "[a][kd_search.losses]"),
        ("datasets.md", "[a](../tests/extension)", "a"),
        # What is not there stays as it is: the strict build reports it.
        ("datasets.md", "[a](../tests/gone)", "[a](../tests/gone)"),
        ("datasets.md", "[a](#b) [c](https://d.e/f)", "[a](#b) [c](https://d.e/f)"),
        ("index.md", "```\n[a](docs/datasets.md)\n```\n", "```\n[a](docs/datasets.md)\n```\n"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(uri, link, expected):
    assert rewritten(link, uri) == expected


def test_every_public_module_is_in_one_page_of_the_reference():
    reference = pages.reference_pages()
    named = [
        line[4:] for text in reference.values() for line in text.splitlines() if "::: " in line
    ]
    assert len(named) == len(set(named))
    assert {"kd_search", "kd_search.losses.oim", "kd_search.distillation.methods.vkd"} < set(named)
    assert not any("._" in name or name.startswith("kd_search.cli") for name in named)
    assert "kd_search.losses.oim.oim_loss" in reference["api/kd_search.losses.md"]


@pytest.mark.parametrize(
    ("name", "content", "refused"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>', True),
        ("a.html", "<script src=//cdn.example/x.js></script>", True),
        ("a.html", '<link rel="stylesheet" href="https://fonts.example/css">', True),
        ("a.html", '<link href="https://fonts.example" rel="preconnect">', True),
        ("a.css", "@font-face { src: url(https://fonts.example/a.woff2) }", True),
        ("a.html", '<img src="https://badge.example/a.svg">', True),
        ("a.html", '<a href="https://arxiv.org/abs/1909.01058">paper</a>', False),
        ("a.html", '<script src="assets/x.js"></script><img src="images/a.png">', False),
    ],
)
def test_a_page_that_makes_a_request_to_another_host_fails(tmp_path, name, content, refused):
    (tmp_path / name).write_text(content)
    config = types.SimpleNamespace(site_dir=str(tmp_path))
    if refused:
        with pytest.raises(PluginError, match=f"{name}.*example"):
            pages.on_post_build(config)
    else:
        pages.on_post_build(config)


def test_docstrings_become_markdown(tmp_path):
    (tmp_path / "kd_search").mkdir()
    (tmp_path / "kd_search/__init__.py").write_text(
        '"""Of :func:`f`, :class:`~kd_search.A`, :func:`torch.cat` and :data:`_hidden`. So::\n\n'
        '    x\n\nEnd.\n"""\n\n#: A size.\n#: In pixels.\nSIZE = 3\n_hidden = 4\n\n\n'
        'def f():\n    """Do."""\n\n\nclass A:\n    """See :meth:`g`."""\n\n'
        '    def g(self):\n        """Go."""\n'
    )
    extensions = griffe.load_extensions(str(REPO / "tools/docs_site/docstrings.py"))
    package = griffe.load(
        "kd_search", search_paths=[tmp_path], extensions=extensions, try_relative_path=False
    )
    assert package.docstring.value == (
        "Of [`f`][kd_search.f], [`A`][kd_search.A], `torch.cat` and `_hidden`. So:\n\n    x\n\nEnd."
    )
    assert package["SIZE"].docstring.value == "A size.\nIn pixels."
    assert package["A"].docstring.value == "See [`g`][kd_search.A.g]."

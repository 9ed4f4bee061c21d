"""How the documents become a site: `make docs`.

The source is the whole repository, so that pages outside this folder are pages of the site too,
and links among them need no other spelling than they have for readers of the files.
"""

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "everydream"
author = PROJECT["authors"][0]["name"]
copyright = author  # noqa: A001 - Sphinx's name
release = version = PROJECT["version"]

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "deploy/*.md", "docs/**.md"]
exclude_patterns = [".*", "bench", "everydream", "examples", "services", "shared", "tests", "dist"]

myst_heading_anchors = 4  # as on code hosts: what the pages' links name

myst_enable_extensions = ["colon_fence"]  # its mark is no block of code on code hosts

html_theme = "furo"
html_title = f"{project} {release}"
html_additional_pages = {"index": "to_docs.html"}
html_copy_source = False
html_show_sphinx = False
templates_path = ["site"]

"""Sphinx configuration: MyST pages, docstrings of the library, and the tables of conf/."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "cityseg"
author = "the cityseg developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "config_reference"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "cityseg"
html_show_copyright = False
autodoc_typehints = "description"
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
napoleon_use_ivar = True  # else attributes of dataclasses are described twice


def setup(app: Sphinx) -> None:
    """Leave out what Python says of the fields of named tuples."""
    app.connect("autodoc-skip-member", lambda *event: True if str(event[3].__doc__).startswith("Alias for") else None)

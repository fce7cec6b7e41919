"""Sphinx configuration: MyST pages, API pages from the docstrings, the gallery by running the examples."""

from __future__ import annotations

import os

import dit_lens

os.environ.setdefault("MPLBACKEND", "Agg")

project = "dit_lens"
author = "The dit_lens authors"
copyright = author
release = version = dit_lens.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
# In docstrings `Name` is a link where the name is documented and plain code where it is not.
default_role = "py:obj"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 100
napoleon_google_docstring = False
# The type slot of a docstring holds a shape, so it is text and not a reference to be resolved.
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

# The pages' snippets; those of the docstrings are run by pytest, in the namespace of their module.
doctest_global_setup = "import dit_lens as dl"
doctest_test_doctest_blocks = ""

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "plot_",
    "abort_on_example_error": True,
    "min_reported_time": 0,
    "download_all_examples": False,
    "show_signature": False,
}

html_theme = "furo"
html_title = "dit_lens"

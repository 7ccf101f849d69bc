"""Settings of the documentation: `make docs`, or sphinx-build -W -b html docs docs/site."""

import logging
import os
import sys
import warnings
from pathlib import Path

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))
logging.getLogger("transformers").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="transformers")

from hf_unlearn import __version__  # noqa: E402

project = "hf_unlearn"
author = "the authors of hf_unlearn"
copyright = "the authors of hf_unlearn, Apache-2.0"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "generated",
]
exclude_patterns = ["site", "_ext"]
source_suffix = {".md": "markdown"}
smartquotes = False

# ---- Markdown ----
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# ---- docstrings ----
# What a subclass does not describe, its base class does, in its own place.
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# ---- pages ----
html_theme = "pydata_sphinx_theme"
html_title = "hf_unlearn"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "hf_unlearn"},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"changelog": [], "roadmap": [], "glossary": [], "methods": []}

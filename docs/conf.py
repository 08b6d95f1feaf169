"""The documentation's settings: Sphinx, MyST, MyST-NB and furo. `make docs` builds it.

Nothing is fetched, by the build or by its pages: mathematics becomes MathML, fonts are
the reader's, and there is no inventory of another project's documentation.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import para_jax  # noqa: E402

project = "para_jax"
author = "The para_jax authors"
copyright = author  # noqa: A001
version = release = para_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    # Ours, in `_ext`.
    "docstrings",
    "mathml",
    "repository",
]
exclude_patterns = ["_ext"]
nitpicky = True

# Furo's pages are one column on a phone, and load nothing from elsewhere.
html_theme = "furo"
html_title = "para_jax"
html_css_files = ["style.css"]
html_static_path = ["static"]
html_show_sphinx = False
html_copy_source = html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#35507a",
        "color-brand-content": "#2a5da8",
    },
    "dark_css_variables": {
        "color-brand-primary": "#9db8e0",
        "color-brand-content": "#8fb4ee",
    },
}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

# `make docs` executes the notebooks before, and only when something has changed.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Docstrings write names and expressions between single backticks. Those that are public
# become links; the others stay code.
default_role = "py:obj"
# Files of the repository that are pages, and where links to its other files lead.
repository_url = "https://github.com/OWNER/para_jax"
repository_pages = {
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "results/sentences": "train/results/README.md",
    "results/pictures": "train/results/vision/README.md",
    "results/problems": "train/results/problems/README.md",
    "results/glue": "train/results/glue/README.md",
    "results/choose": "train/results/choose/README.md",
}

# Types of other libraries, and of ours that are no page: there is nothing to link to.
nitpick_ignore_regex = [
    ("py:obj", r"(.|\n)*"),
    ("py:class", r"(?!para_jax\.).*|para_jax\.\w+\..*"),
    ("py:(exc|data)", r"(?!para_jax\.).*"),
]

"""The documentation as a site: ``make docs``.

Nothing is fetched, neither when it is built nor when a page is opened.
"""

from __future__ import annotations

from idempotency import __version__

project = "django-idempotency"
author = "django-idempotency contributors"
release = version = __version__
copyright = author  # noqa: A001  # the name that Sphinx reads

extensions = ["myst_parser"]
nitpicky = True
# Links to headings: as deep as pages have headings that others link to.
myst_heading_anchors = 3

pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    # The colours of the diagrams, and of nothing else: links that stand out in both.
    "light_css_variables": {
        "color-brand-primary": "#0b5d7a",
        "color-brand-content": "#0b5d7a",
        "color-brand-visited": "#5b4a8a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc7e0",
        "color-brand-content": "#7cc7e0",
        "color-brand-visited": "#b9a8e8",
    },
}

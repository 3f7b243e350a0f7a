"""The pages of docs/ as a site: `nox -s site` writes it to artifacts/site.

The source folder is the repository, so that the links between the pages, the results and the README hold both here and
where somebody reads the Markdown itself.
"""

from u2export.version import __version__

project, author, release = "u2export", "the u2export contributors", __version__
project_copyright = "the u2export contributors, Apache-2.0"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "README.md", "CHANGELOG.md", "SECURITY.md", "calibration/README.md", "benchmarks/results/**.md",
]  # fmt: skip
myst_heading_anchors = 4  # links to headings are those of GitHub
# A page of results is reached by the links of the pages that speak of it; some of them begin below the first level.
suppress_warnings = ["toc.not_included", "myst.header"]
html_theme = "furo"
html_title = f"u2export {release}"
html_extra_path = ["../llms.txt", "index.html"]
html_show_sourcelink = False

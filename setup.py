"""What pyproject.toml cannot say: a README whose links work elsewhere, and the demo model inside.

    SAMTRT_REPOSITORY=https://github.com/OWNER/samtrt python -m build --wheel

With that variable the README's pictures and links, and the project's own, lead into the repository
at the tag of this version; without it they stay as they are, and a package index shows none.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
REPOSITORY = os.environ.get("SAMTRT_REPOSITORY", "").rstrip("/")
# What a wheel brings along from the examples, and its place in the package.
DEMO = {
    "examples/sam/sam_models/sam_demo.pth": "samtrt/models/sam_demo.pth",
    "examples/sam/images/demo.jpg": "samtrt/models/demo.jpg",
}
LINK = re.compile(r"(?P<head>!?\[[^\]]*\])\((?!https?://|#)(?P<target>[^)]+)\)")


def version() -> str:
    """The package's, which stands in its source."""
    text = (ROOT / "samtrt" / "__init__.py").read_text("utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def readme() -> str:
    """README.md with absolute links."""
    text = (ROOT / "README.md").read_text("utf-8")
    if not REPOSITORY:
        return text

    def absolute(match: re.Match) -> str:
        kind = "raw" if match["head"].startswith("!") else "blob"
        return f"{match['head']}({REPOSITORY}/{kind}/v{version()}/{match['target']})"

    return LINK.sub(absolute, text)


def urls() -> dict:
    """The project's pages, as far as they are known."""
    known = {"Paper": "https://arxiv.org/abs/2304.02643"}
    if REPOSITORY:
        known |= {
            "Repository": REPOSITORY,
            "Documentation": f"{REPOSITORY}/tree/v{version()}/docs",
            "Changelog": f"{REPOSITORY}/blob/v{version()}/CHANGELOG.md",
            "Issues": f"{REPOSITORY}/issues",
        }
    return known


class BuildWithDemo(build_py):
    """The package, with the demo model and its picture; an editable one finds them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in DEMO.items():
                shutil.copyfile(ROOT / source, Path(self.build_lib) / target)


setup(
    version=version(),
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls=urls(),
    cmdclass={"build_py": BuildWithDemo},
)

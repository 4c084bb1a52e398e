"""Hooks that MkDocs calls while it builds the site: see mkdocs.yml and the package documentation.

The build is strict: any warning makes it fail.
"""

import logging
import pkgutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import soflow
from documentation import api, commands, configuration, links, notebooks
from documentation.equations import Equations

log = logging.getLogger("mkdocs.hooks.soflow")
ROOT = Path(__file__).parents[1]


class NotebookFile(File):
    """A notebook that is a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the extension that translates equations."""
    config.markdown_extensions.append(Equations())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and turns notebooks into pages."""
    generated = {"commands.md": commands.page(), "configuration.md": configuration.page()}
    for name, text in (generated | api.pages()).items():
        files.append(File.generated(config, name, content=text))
    for name in api.undocumented():
        log.warning(f"soflow.{name} has no docstring")
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            add_notebook(file, files, config)
    return files


def add_notebook(file: File, files: Files, config: MkDocsConfig) -> None:
    """Replaces the file of a notebook by a page, and adds the pictures of its outputs."""
    page = notebooks.page(file.content_string, file.src_uri)
    with_page = NotebookFile(
        file.src_uri, None, config.site_dir, config.use_directory_urls, inclusion=file.inclusion
    )
    with_page.content_string = page.markdown
    with_page.edit_uri = file.src_uri
    files.append(with_page)
    folder = Path(file.src_uri).parent
    for name, content in page.pictures.items():
        files.append(File.generated(config, (folder / name).as_posix(), content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Checks names and links to the repository."""
    base = f"{config.repo_url}/blob/main/".replace("//blob", "/blob")
    markdown = links.to_repository(markdown, base, page.file.src_uri)
    modules = {module.name for module in pkgutil.iter_modules(soflow.__path__)}
    for name in links.unknown_names(
        markdown, {*soflow.__all__, *modules, "__all__", "__version__"}
    ):
        log.warning(f"{page.file.src_uri} names {name}, which does not exist")
    for path in links.missing_files(markdown, base, ROOT):
        log.warning(f"{page.file.src_uri} links to {path}, which is not in the repository")
    return markdown

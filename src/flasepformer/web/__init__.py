"""The page: separation in a browser, where no audio leaves the computer, and the server that hands it out.

The page is built from `web/` of the repository, and lies here so that nobody needs more than this package.
Its network is `page/graph.onnx`, whose weights are those of the package's default model, as they are.
"""

from flasepformer.web.files import PageError, PageFile, page_files, write_page
from flasepformer.web.server import PageServer, is_local

__all__ = ["PageError", "PageFile", "PageServer", "is_local", "page_files", "write_page"]

"""What every room that writes files needs: files that are whole or not there, locks, tables for people."""

from flasepformer.files.locks import locked
from flasepformer.files.tables import markdown_table
from flasepformer.files.whole import write_whole, written_whole

__all__ = ["locked", "markdown_table", "write_whole", "written_whole"]

"""Parts: what an open keyspace is made of."""

from typing import Final

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.committer import Committer
from nkv_core.keyspace.reading import Reader
from nkv_core.keyspace.upkeep import Upkeep
from nkv_core.loop import Worker


class Parts:
    """The book, and those who read and write in it."""

    __slots__ = ("book", "committer", "reader", "reading", "upkeep", "writing")

    def __init__(
        self,
        book: Book,
        settings: KeyspaceSettings,
        writing: Worker | None,
        reading: Worker | None,
    ) -> None:
        self.book: Final = book
        self.writing: Final = writing
        self.reading: Final = reading
        self.reader: Final = Reader(book)
        self.committer: Final = Committer(book, settings, writing)
        self.upkeep: Final = Upkeep(self.committer, book, settings)

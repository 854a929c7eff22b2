"""Commands: what the verbs do. Registered as handlers of the listener `nats`."""

from typing import Final

from nkv_core import operations
from nkv_core.contracts.handlers import Handlers, Request
from nkv_core.errors import NotFound
from nkv_core.nats_link import is_subject
from nkv_core.records import Record

from .messages import VERBS, subject_of
from .subjects import Subjects

LISTENER: Final = "nats"


class Commands:
    """The handlers. `request.params` has `id` and `key`."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects

    def register(self, handlers: Handlers) -> None:
        """Register one handler for each verb; its path is also the command in events."""
        answers = {
            "get": self.get,
            "put": self.put,
            "delete": self.delete,
            "subscribe": self.subscribe,
        }
        for verb in VERBS:
            handlers.add(verb, answers[verb], (verb.upper(),), LISTENER, command=verb, timeout=None)

    async def get(self, request: Request) -> Record:
        """The record of a key."""
        return await operations.get(request.keyspace, request.params["key"])

    async def put(self, request: Request) -> None:
        """Set a value."""
        await request.keyspace.put(request.params["key"], request.body)

    async def delete(self, request: Request) -> None:
        """Delete a key."""
        await operations.delete(request.keyspace, request.params["key"])

    async def subscribe(self, request: Request) -> str:
        """Have the changes of a key that exists told, and return the subject."""
        key = request.params["key"]
        record = await operations.get(request.keyspace, key)
        subject = subject_of(key)
        if not is_subject(subject):
            raise NotFound("No subject can have this key.")
        await self._subjects.add(key, record.value)
        return subject

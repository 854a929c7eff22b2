"""Every exception that nkv raises on purpose.

An error has a stable `code` (what a program tests for), an HTTP `status` (what a transport makes
its own refusal of) and a `detail` for people. Codes are part of the interface: they never change
meaning, and a new situation gets a new code.
"""

from typing import ClassVar


class NkvError(Exception):
    """The base of all errors of nkv. `detail` says what happened and what to do instead."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail or (type(self).__doc__ or self.code).splitlines()[0]

    def __str__(self) -> str:
        return self.detail


# --- what a request asks for is wrong -------------------------------------------------------------


class BadRequest(NkvError):
    """The request cannot be understood."""

    code = "bad_request"
    status = 400


class InvalidKey(BadRequest):
    """The key is empty, too long, not UTF-8, has control characters, or is `.` or `..`."""

    code = "invalid_key"


class InvalidPattern(BadRequest):
    """The pattern is empty or not made of valid levels."""

    code = "invalid_pattern"


class InvalidVersion(BadRequest):
    """The version is not one that a node of nkv hands out."""

    code = "invalid_version"


class InvalidToken(BadRequest):
    """The watch token is malformed, or of a form newer than this node knows."""

    code = "invalid_token"


class InvalidExpiry(BadRequest):
    """The time to live is not a positive number of seconds."""

    code = "invalid_expiry"


class ConflictingConditions(BadRequest):
    """The conditions of the request exclude each other."""

    code = "conflicting_conditions"


class ValueTooLarge(NkvError):
    """The value is larger than this node accepts."""

    code = "value_too_large"
    status = 413


class BodyTooLarge(NkvError):
    """The body of the request is larger than this node accepts."""

    code = "body_too_large"
    status = 413


class BodyTimeout(NkvError):
    """The body of the request did not arrive in time."""

    code = "body_timeout"
    status = 408


class UnsupportedMediaType(NkvError):
    """The body's content type is not one that this path takes."""

    code = "unsupported_media_type"
    status = 415


# --- the request is clear, the answer is no -------------------------------------------------------


class Unauthenticated(NkvError):
    """A valid token is needed: send it as a bearer token or in X-Api-Key."""

    code = "unauthenticated"
    status = 401


class Forbidden(NkvError):
    """The token does not give the right to do this here."""

    code = "forbidden"
    status = 403


class ForeignOrigin(NkvError):
    """A web page of another origin may not change data or open a socket here."""

    code = "foreign_origin"
    status = 403


class NotFound(NkvError):
    """There is no such key."""

    code = "not_found"
    status = 404


class NoHandler(NkvError):
    """No handler is registered for this path."""

    code = "no_handler"
    status = 404


class MethodNotAllowed(NkvError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, detail: str = "", *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.allowed = allowed


class NotText(NkvError):
    """The value is not UTF-8 text, which is all that this dialect can carry."""

    code = "not_text"
    status = 406


class ConditionFailed(NkvError):
    """The record is not in the state that the condition asks for."""

    code = "condition_failed"
    status = 412


class OtherHistory(ConditionFailed):
    """The version belongs to another history of this store: read the record again."""

    code = "other_history"


class NotAcknowledged(NkvError):
    """The write stands on this node, but fewer nodes have it than were asked for."""

    code = "not_acknowledged"
    status = 202


class MisdirectedHost(NkvError):
    """The Host header names no address of this node."""

    code = "misdirected_host"
    status = 421


class Rejected(NkvError):
    """What a RequestStart listener raises to refuse a request, with its own status and code."""

    code = "rejected"
    status = 403

    def __init__(self, status: int = 403, code: str = "rejected", detail: str = "") -> None:
        super().__init__(detail or "The request was rejected by a plugin.")
        self.status = status  # type: ignore[misc]  # this one error carries them per instance
        self.code = code  # type: ignore[misc]


# --- the node cannot ------------------------------------------------------------------------------


class HandlerFailed(NkvError):
    """The handler of this path failed; the node's log has the reason."""

    code = "handler_failed"
    status = 500


class NotSupportedHere(NkvError):
    """The keyspace of this node cannot do this; the detail names who cannot."""

    code = "not_supported_here"
    status = 501


class Overloaded(NkvError):
    """Too many writes are waiting: try again shortly."""

    code = "overloaded"
    status = 503


class Stopping(NkvError):
    """The node, or the plugin that serves this, is stopping: try again."""

    code = "stopping"
    status = 503


class StorageFailed(NkvError):
    """The storage could not do this; nothing was changed."""

    code = "storage_failed"
    status = 503


class StorageFull(StorageFailed):
    """The disk is full: nothing was changed, and reading goes on."""

    code = "storage_full"
    status = 507


class DeadlineExceeded(NkvError):
    """The deadline of the request passed. A write under way may still be made."""

    code = "deadline_exceeded"
    status = 504


class OutcomeUnknown(NkvError):
    """Whether the write was made is not known: read before trying again."""

    code = "outcome_unknown"
    status = 504


# --- starting up ----------------------------------------------------------------------------------


class SettingsError(NkvError):
    """A setting is unknown or has a value that cannot be used."""

    code = "invalid_settings"
    status = 400


class StartError(NkvError):
    """The node cannot start."""

    code = "cannot_start"


class AddressInUse(StartError):
    """The address is taken by another program."""

    code = "address_in_use"


class DataDirError(StartError):
    """The data directory cannot be used as it is; nothing in it was changed."""

    code = "data_dir_unusable"


class DataDirBusy(DataDirError):
    """Another node is using the data directory."""

    code = "data_dir_busy"


class DataDamaged(DataDirError):
    """What is stored is damaged, or was not written by nkv; it was not changed."""

    code = "data_damaged"


class NewerFormat(DataDirError):
    """The data was written by a newer nkv than this one."""

    code = "newer_format"


class OtherStorage(StartError):
    """The settings name another storage than the one that a migration has put in charge."""

    code = "other_storage"


class MigrationRunning(NkvError):
    """The storage is being migrated already."""

    code = "migration_running"
    status = 409


class NoMigration(NkvError):
    """No migration is under way."""

    code = "no_migration"
    status = 409


class MigrationFailed(NkvError):
    """The migration has failed; the storage that was in charge still is."""

    code = "migration_failed"
    status = 409


class VolatileTarget(NkvError):
    """The storage to migrate to forgets everything when the node ends."""

    code = "volatile_target"
    status = 409


# --- plugins --------------------------------------------------------------------------------------


class PluginError(NkvError):
    """A plugin cannot be loaded, replaced or unloaded; what was running runs on."""

    code = "plugin_error"
    status = 409


class PluginNotFound(PluginError):
    """There is no such plugin."""

    code = "plugin_not_found"
    status = 404


class PluginInvalid(PluginError):
    """The plugin's source cannot be executed, or its hooks do not fit."""

    code = "plugin_invalid"


class PluginSetupFailed(PluginError):
    """The plugin's setup raised, or took longer than it may."""

    code = "plugin_setup_failed"


class PluginInUse(PluginError):
    """The plugin cannot be unloaded while the node depends on it."""

    code = "plugin_in_use"


class PluginExists(PluginError):
    """A plugin of this name is loaded already: replace it instead."""

    code = "plugin_exists"


class StaleGeneration(PluginError):
    """The plugin is of another generation than was said: somebody else has replaced it."""

    code = "stale_generation"
    status = 412


class RouteTaken(PluginError):
    """Another plugin has registered a handler for this path and method."""

    code = "route_taken"


class UntrustedFile(PluginError):
    """The file may be changed by others, or is not a regular file of this node's user."""

    code = "untrusted_file"


# --- clients --------------------------------------------------------------------------------------


class ClientGone(NkvError):
    """The client went away before it had its reply."""

    code = "client_gone"
    status = 499


class Unreachable(NkvError):
    """The node does not answer."""

    code = "unreachable"
    status = 503


class LockHeld(NkvError):
    """The lock is held by others."""

    code = "lock_held"
    status = 409


class LockLost(NkvError):
    """The lock that was held may be held by others now."""

    code = "lock_lost"
    status = 409

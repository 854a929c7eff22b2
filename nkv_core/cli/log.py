"""The node's log on standard error: lines of text for people, or JSON for machines."""

import logging
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

from nkv_core.cli.output import printable
from nkv_core.contracts.settings import LogSettings

#: The loggers of nkv and its plugins. Those of libraries tell warnings and worse alone.
OURS: Final = ("nkv", "nkv_core")


def start_logging(settings: LogSettings) -> None:
    """Send what is logged from now on to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _level(settings)))
    for name in OURS:
        logging.getLogger(name).setLevel(_level(settings))


def _level(settings: LogSettings) -> int:
    return logging.getLevelNamesMapping()[settings.level.upper()]


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """One line for each record; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record. Control characters in it cannot make a line that looks like another."""
        line = (
            f"{_time(record)} {record.levelname.lower()} {record.name}:"
            f" {printable(record.getMessage())}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if record.stack_info:
            line += "\n" + self.formatStack(record.stack_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return msgspec.json.encode(
            {name: text.encode("utf-8", "replace").decode() for name, text in fields.items()}
        ).decode()

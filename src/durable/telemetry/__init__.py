"""Listeners that report what runs do: names, and no values."""

from durable.telemetry.logs import all_of, log_events
from durable.telemetry.progress import progress

__all__ = ["all_of", "log_events", "progress"]

"""Listeners that report what runs do: names, and no values."""

from durable.telemetry.logs import all_of, log_events

__all__ = ["all_of", "log_events"]

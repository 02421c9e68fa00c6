"""What a run says, for people to read: names only."""

from durable.telemetry.logs import all_of, log_events

__all__ = ["all_of", "log_events"]

"""What each room may use: threads, locks, reports, checks, durations, and the boundary to users' code."""

"""What each room may use: threads, locks, forks, reports, checks, durations, and the boundary to users' code."""

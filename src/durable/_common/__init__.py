"""What each room may use: threads, locks, forks, reports, durations, and the boundary to users' code."""

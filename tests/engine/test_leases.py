"""How long a process may write, by its own clock."""

from __future__ import annotations

from durable._engine.leases import Lease


def test_a_lease_ends_here_before_it_ends_at_a_server_whose_clock_runs_faster() -> None:
    """FAULTS 23: both clocks slewed by as much as NTP does, 500 ppm, and apart. (Found by simulation.)"""
    lease = Lease("r", "1:x", 1, 30.0, 100.0)
    for _ in range(2):
        ends_at_the_server = 30.0 * (1 - 5e-4)  # true seconds after it was sent
        assert lease.why_ended(lease.sent + ends_at_the_server * (1 - 5e-4)) is not None
        assert lease.why_ended(lease.sent + 29.5) is None
        lease.renew(110.0)

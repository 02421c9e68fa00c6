"""Deterministic simulation: the real engine, drivers, leases and writer on a modelled database, in virtual time."""

"""The suites that a store must pass: a class for each kind of store, to inherit in tests."""

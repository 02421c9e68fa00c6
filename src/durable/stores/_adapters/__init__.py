"""One way to the engine's store for any object with the five verbs, blocking or async."""

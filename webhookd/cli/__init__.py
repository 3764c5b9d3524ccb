"""The commands: a module each, found by `main`; and what they print with."""

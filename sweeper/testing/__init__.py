"""Conformance suites: what anything plugged into sweeper must do, as pytest-style checks."""

"""Sweep, confirm, report, init: the only place where everything meets."""

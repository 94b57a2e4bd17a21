"""Frozen records, errors and seeds. Standard library only; every other room stands on this one."""

"""The truth on disk: ledger, manifest, tables, and the one class that knows every file name."""

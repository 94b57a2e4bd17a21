"""Data: from files, folders, hub ids and built-ins to sealed, fingerprinted splits in Arrow files."""

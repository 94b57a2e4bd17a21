"""User files to validated objects: the study file and search-space files, errors with line and column."""

"""Where studies run: profiles, packaging, submission, and the examination of a cluster before anything is spent."""

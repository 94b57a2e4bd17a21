"""What a study will do, its content hash, and what it will cost."""

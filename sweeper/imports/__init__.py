"""Tables of trials that another tool wrote, read into rows with known columns."""

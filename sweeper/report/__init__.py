"""The report: rebuilt from the result folder alone, on a machine without Ray and torch."""

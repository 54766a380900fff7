"""The only rooms that change a model: merge (rewrites a weight), bypass (adds to an output), session (one pass)."""

"""What a row of a probe's design matrix is, and the runs that fill it."""

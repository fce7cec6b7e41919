"""What every analysis returns, and what its pictures and intervals share."""

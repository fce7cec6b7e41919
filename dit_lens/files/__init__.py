"""Files are never half-written and never taken for another's; where shipped weights lie; video in and out."""

"""What patching every site would do, to first order, beside what it does."""

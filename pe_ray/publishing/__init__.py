"""A finished run as a data set that others can use and check."""

"""Figures and the demonstration: programs that drive millpond by its command line, as a user does."""

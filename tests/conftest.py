"""Shared fixtures. Tests are tables and samples; what several test files need stands here."""

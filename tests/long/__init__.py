"""Tests that take minutes: ``make long``."""

"""Requests that nobody expects, in bytes, to a real server."""

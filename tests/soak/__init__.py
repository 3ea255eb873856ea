"""A long run: mixed load while everything dies around it, and a ledger beside it."""

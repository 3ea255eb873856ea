"""What tests and their commands share, and no test."""

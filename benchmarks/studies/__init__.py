"""Studies whose results stand in the documents; ``make bench`` does not run them."""

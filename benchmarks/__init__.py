"""What the app costs, as ratios within one run. ``make bench`` runs all of it."""

"""PostgreSQL for a project whose transactions begin with options of its own.

There the app sends each statement by itself, as it does without psycopg 3.
"""

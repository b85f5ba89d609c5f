"""What ``tallymark demo`` shows: a shop, people who visit it, and what starts and ends both."""

"""What looks at the machine and at other systems from time to time, and records what it sees."""

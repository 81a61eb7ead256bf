"""The poster's table: its rows, how they are trained, and how measured and trained halves are joined."""

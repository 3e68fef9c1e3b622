"""Run the line's Faust agents; there is no arithmetic here (see README.md)."""

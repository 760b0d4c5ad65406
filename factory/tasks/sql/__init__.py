"""The task `sql`: questions about a database, answered by one SELECT statement that is run read-only."""
